"""Whether a run has anything left to do, told in no time: it ended, and nothing that it was made from has changed since. Torch-free.

What this cannot tell (a dataset of the Hub, another version, a file whose time changed) is looked at in full by the run itself.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune import __version__, files
from finetune.config.job import Job
from finetune.results import verdict
from finetune.results.summary import Summary, dropped, is_whole, read
from finetune.run_folder import RunFolder
from finetune.text import from_json


def lines(job: Job, ended: Summary) -> list[str]:
    """What is said of a run that has nothing left to do."""
    more = "--fresh starts over" if dropped(job) else "--steps continues, --fresh starts over"
    return [f"already finished: {ended.steps} steps in {job.run.folder}; nothing to do ({more})", *verdict.lines(job, ended)]


def write(job: Job, base: Path, summary: Summary) -> None:
    """Notes that the run is finished; `base` is the folder that it used. Nothing, where its files cannot be told to be the same."""
    if (facts := _facts(job, base, summary)) is not None:
        files.write_json(RunFolder(job.run.folder).finished, facts)


def summary(job: Job) -> Summary | None:
    """What the finished run of this very job said at its end."""
    out = job.run.folder
    if dropped(job) and RunFolder(out).checkpoints.exists():  # it was stopped before it had removed them
        return None
    try:
        before = from_json(files.read_text(RunFolder(out).finished))
        ended = read(out)
        return ended.summary if _facts(job, Path(before["base"]), ended.summary) == before and is_whole(ended) else None
    except (OSError, ValueError, LookupError, TypeError):  # never finished, of an older version, or damaged
        return None


def _facts(job: Job, base: Path, summary: Summary) -> dict[str, Any] | None:
    places = [p.path for p in job.data.places]
    places += [str(p) for p in (job.subject.class_data, job.method.start, job.model.vae) if p is not None]
    if job.data.holdout and files.pictures(job.data.holdout).exists():
        places.append(job.data.holdout)
    paths = [base, *map(files.pictures, places), *(summary.written[kind] for kind in summary.files)]
    if not all(p.exists() for p in paths):
        return None
    stamps: list[str] = []
    for path in paths:
        stamps += _stamps(path)
    digest = hashlib.sha256("\n".join(stamps).encode("utf-8", "backslashreplace"))
    return {"version": __version__, "settings": job.model_dump(mode="json"), "base": str(base), "files": digest.hexdigest()}


def _stamps(path: Path) -> Iterator[str]:
    """Name, size and times of a file, or of all files of a folder but hidden ones, in order."""
    if path.is_file():
        status = path.stat()
        yield f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        return
    for entry in sorted(os.scandir(path), key=lambda e: e.name):
        if not entry.name.startswith("."):
            yield from _stamps(Path(entry.path))
