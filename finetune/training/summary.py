"""What a run says at its end, in the last file that it writes, and what that file says of whether the run is finished. Torch-free."""

import json
from pathlib import Path
from typing import Any

from finetune import files
from finetune.config.job import Job

NAME = "summary.json"
OF_THE_RECORD = ("identity", "sha256")  # what a summary says for later runs alone


def write(out: Path, summary: dict[str, Any], identity: dict[str, Any]) -> None:
    """The last file that a run writes: with it and the files that it names as they were, the run is finished."""
    files.write_json(out / NAME, summary | {"identity": identity, "sha256": _hashes(summary)})


def ended(out: Path) -> dict[str, Any] | None:
    """What a run's last file says, with its `identity` and its files' `sha256`; nothing where there is none, or an older version's."""
    try:
        summary: dict[str, Any] = json.loads(files.read_text(out / NAME))
        return summary if all(isinstance(summary[name], dict) for name in OF_THE_RECORD) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def finished(summary: dict[str, Any], job: Job) -> bool:
    """Whether a run that ended so has nothing left to do for this job."""
    asked = {"steps": job.optim.steps, "written_as": written_as(job), "sha256": _hashes(summary)}
    return all(summary[name] == value for name, value in asked.items())


def public(summary: dict[str, Any]) -> dict[str, Any]:
    """What a run says at its end."""
    return {k: v for k, v in summary.items() if k not in OF_THE_RECORD}


def _hashes(summary: dict[str, Any]) -> dict[str, str]:
    """Of every file that a run handed over, by path; those that are gone have none."""
    places = [Path(summary[name]) for name in summary["files"]]
    found = [p for place in places for p in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return {str(p): files.sha256(p) for p in found if p.is_file()}


def written_as(job: Job) -> dict[str, str]:
    """The free settings that the written files depend on; one that is newer than the record of a run only where it is not its default."""
    tags = {"publish_tags": "yes"} if job.run.publish_tags else {}
    return tags | {
        "name": job.run.name,
        "format": job.run.format,
        "save_dtype": job.run.save_dtype,
        "prompts": "\n".join(job.run.sample_prompt),
    }
