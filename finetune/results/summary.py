"""What a run says at its end, in the last file that it writes, and what that file says of whether the run is finished. Torch-free."""

import re
from pathlib import Path
from typing import Any

from finetune import files
from finetune.config.job import Job
from finetune.text import from_json

NAME = "summary.json"
OF_THE_RECORD = ("identity", "sha256")  # what a summary says for later runs alone


def write(out: Path, summary: dict[str, Any], identity: dict[str, Any]) -> None:
    """The last file that a run writes: with it and the files that it names as they were, the run is finished."""
    files.write_json(out / NAME, summary | {"identity": identity, "sha256": _hashes(summary)})


def read(out: Path) -> dict[str, Any]:
    """What a run's last file says; the paths are those in `out`, wherever the folder was when they were written.

    Raises:
        OSError, ValueError, LookupError, TypeError: there is none, or it is damaged.
    """
    summary: dict[str, Any] = from_json(files.read_text(out / NAME))
    here = {kind: str(out / _name(summary[kind])) for kind in summary["files"]}
    if summary.get("sheet"):
        here["sheet"] = str(out / "samples" / _name(summary["sheet"]))
    return summary | here | {"out": str(out)}


def _name(path: str) -> str:
    return re.split(r"[\\/]", path)[-1]


def ended(out: Path) -> dict[str, Any] | None:
    """What a run's last file says, with its `identity` and its files' `sha256`; nothing where there is none, or an older version's."""
    try:
        summary = read(out)
        return summary if all(isinstance(summary[name], dict) for name in OF_THE_RECORD) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def finished(summary: dict[str, Any], job: Job) -> bool:
    """Whether a run that ended so has nothing left to do for this job. Without checkpoints it can draw no other prompts."""
    before, now = summary["written_as"], written_as(job)
    if dropped(job):
        before, now = ({k: v for k, v in written.items() if k != "prompts"} for written in (before, now))
    return bool(summary["steps"] == job.optim.steps and before == now and whole(summary))


def whole(summary: dict[str, Any]) -> bool:
    """Whether the files that a run handed over are as it wrote them."""
    return bool(summary["sha256"] == _hashes(summary))


def dropped(job: Job) -> bool:
    """Whether such a run removes its checkpoints when it is finished: those of all weights are large."""
    return job.method.kind == "full" and not job.run.keep_finished


def public(summary: dict[str, Any]) -> dict[str, Any]:
    """What a run says at its end."""
    return {k: v for k, v in summary.items() if k not in OF_THE_RECORD}


def _hashes(summary: dict[str, Any]) -> dict[str, str]:
    """Of every file that a run handed over, by its path in the run's folder; those that are gone have none."""
    out = Path(summary["out"])
    places = [Path(summary[name]) for name in summary["files"]]
    found = [p for place in places for p in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return {p.relative_to(out).as_posix(): files.sha256(p) for p in found if p.is_file()}


def written_as(job: Job) -> dict[str, str]:
    """The free settings that the written files depend on; one that is newer than the record of a run only where it is not its default."""
    tags = {"publish_tags": "yes"} if job.run.publish_tags else {}
    return tags | {
        "name": job.run.name,
        "format": job.run.format,
        "save_dtype": job.run.save_dtype,
        "prompts": "\n".join(job.run.sample_prompt),
    }
