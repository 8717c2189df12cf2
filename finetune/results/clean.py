"""What runs leave that can go: checkpoints that are not the newest, what killed processes left half-written, whole runs. Torch-free.

Only what a run of ours wrote is ever removed, by the names that runs write, and never while a run holds the folder.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from finetune import files
from finetune.config import read_yaml
from finetune.errors import ConfigError, DataError
from finetune.families.autoencoder_file import WEIGHTS
from finetune.results import checkpoint, lock, record, stored, summary
from finetune.run_folder import MANIFEST, RECORD, RunFolder

PARTS = {*checkpoint.PARTS, MANIFEST}
SECTIONS = {"model", "data", "method", "objective", "optim", "run"}  # of a run's record


class NoRuns(DataError):
    """A folder holds no run."""


@dataclass(frozen=True)
class Removable:
    """Something that can go."""

    kind: str
    path: Path
    size: int  # bytes
    run: Path | None  # whose folder must not be in use; None of the cache


@dataclass
class Findings:
    """What can go, and what stays although it was asked for, with the reason."""

    items: list[Removable] = field(default_factory=list)
    stays: dict[Path, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)


def runs(place: Path) -> list[Path]:
    """The folders of runs in a folder, itself among them; links are not followed.

    Raises:
        NoRuns: there is no such folder, or no run in it.
    """
    folders = [Path(folder) for folder, inside, names in os.walk(place) if _is_run(folder, inside, names)]
    if not folders:
        wrong = "holds no runs" if place.is_dir() else "no such folder"
        raise NoRuns(f"{place}: {wrong}", "give the --out of runs, or a folder of them")
    return sorted(folders)


def _is_run(folder: str, inside: list[str], names: list[str]) -> bool:
    """Whether a run wrote the folder; hidden folders and those of runs are not searched further."""
    is_run = RECORD in names and not os.path.islink(os.path.join(folder, RECORD)) and _says_run(Path(folder, RECORD))
    inside[:] = [] if is_run else [name for name in inside if not name.startswith(".")]
    return is_run


def _says_run(path: Path) -> bool:
    """Whether a file is the record that runs write, with every section: a recipe that somebody wrote has but a few."""
    with suppress(ConfigError):
        return read_yaml(path).keys() >= SECTIONS
    return False


def look(folders: Sequence[Path], whole: bool = False) -> Findings:
    """What can go of runs: with `whole` all that they wrote, else checkpoints but the newest; and everywhere what was half-written."""
    findings = Findings()
    for folder in folders:
        if who := lock.holder(folder):
            findings.stays[folder] = f"in use: {who}"
            continue
        findings.items += _whole(folder) if whole else _checkpoints(folder, findings.stays)
        findings.items += _half_written(folder)
    if not whole:
        findings.items += [Removable("half-written", path, files.size(path), None) for path in stored.left_behind()]
    return findings


def _checkpoints(folder: Path, stays: dict[Path, str]) -> Iterator[Removable]:
    """Those before the newest that is whole: the run goes on from that one. Where none is whole, all stay."""
    run = RunFolder(folder)
    newest = next(checkpoint.valid(run.checkpoints), None)
    if newest is None:
        return
    for step in checkpoint.steps(run.checkpoints):
        path = run.checkpoint(step)
        if path == newest or path.is_symlink():
            continue
        if {p.name for p in path.iterdir()} <= PARTS:
            yield Removable("checkpoint", path, files.size(path), folder)
        else:
            stays[path] = "holds files that no run wrote"


def _whole(folder: Path) -> Iterator[Removable]:
    run = RunFolder(folder)
    steps = [run.checkpoint(step) for step in checkpoint.steps(run.checkpoints)]
    written = [path for path in [*steps, *results(folder), *record.kept_files(folder)] if path.exists() and not path.is_symlink()]
    for path in dict.fromkeys(written):
        yield Removable("run", path, files.size(path), folder)


def results(folder: Path) -> list[Path]:
    """What a finished run says that it wrote, as far as it lies in its folder: files, and folders of diffusers or PEFT."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        written = summary.files_of(folder).values()
        return [p for p in written if p.parent == folder and p.name not in ("", "..") and (p.is_file() or _is_result(p))]
    return []


def _is_result(path: Path) -> bool:
    return any((path / name).is_file() for name in ("model_index.json", "adapter_config.json", WEIGHTS))


def _half_written(folder: Path) -> Iterator[Removable]:
    for path in [*_left_behind(folder), RunFolder(folder).job]:
        if path.exists():
            yield Removable("half-written", path, files.size(path), folder)


def _left_behind(folder: Path) -> Iterator[Path]:
    for place in (folder, *RunFolder(folder).parts):
        yield from files.left_behind(place)


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written, in a run's folder that this process holds and in the cache."""
    _remove((Removable("half-written", path, 0, None) for path in [*_left_behind(folder), *stored.left_behind()]), Findings())


def remove(items: Iterable[Removable], whole: bool = False) -> Findings:
    """Removes what is still as `look` found it, each run's part while its folder is held; returns what went, and what did not."""
    agreed, done = {item.path: item for item in items}, Findings()
    for folder in dict.fromkeys(item.run for item in agreed.values()):
        if folder is None:
            _remove((item for item in agreed.values() if item.run is None), done)
            continue
        try:
            with lock.held(folder):
                there = [*(_whole(folder) if whole else _checkpoints(folder, done.stays)), *_half_written(folder)]
                _remove((item for item in there if item.path in agreed), done)
        except ConfigError as e:
            done.stays[folder] = e.message
        if whole:
            _tidy(folder, done.stays)
    return done


def _remove(items: Iterable[Removable], done: Findings) -> None:
    for item in items:
        files.remove(item.path)
        if item.path.exists():
            done.stays[item.path] = "the system does not let it be removed"
        else:
            done.items.append(item)


def _tidy(folder: Path, stays: dict[Path, str]) -> None:
    """Removes the folders of a run that are empty now."""
    for place in (*RunFolder(folder).parts, RunFolder(folder).tensorboard, folder):
        with suppress(OSError):
            place.rmdir()
    if folder.is_dir() and folder not in stays:
        left = sorted(p.name for p in folder.iterdir())
        stays[folder] = f"holds what no run wrote: {', '.join(left[:5])}" + (" …" if len(left) > 5 else "")
