"""What a run says at its end, in the last file that it writes, and what that file says of whether the run is finished. Torch-free."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from finetune import files
from finetune.config.job import Job
from finetune.results.metrics import plain_number
from finetune.run_folder import RunFolder
from finetune.text import from_json

Verdict = Literal["learned", "no difference", "worse", "not measured"]
OF_THE_RECORD = ("identity", "sha256")  # what a summary says for later runs alone


@dataclass(frozen=True)
class Measure:
    """The held-out loss at the end beside the base's, and the change: its mean over pictures with the 95 % interval, which one picture
    does not have."""

    loss: float
    base: float
    mean: float
    low: float | None
    high: float | None
    pictures: int


@dataclass(frozen=True)
class RoundTrip:
    """The mean PSNR in dB of held-out pictures that are encoded and decoded, by what a run wrote and by the base, and the difference: its
    mean over pictures with the 95 % interval, which one picture does not have. More is better."""

    run: float
    base: float
    mean: float
    low: float | None
    high: float | None
    pictures: int


@dataclass(frozen=True)
class Summary:
    """What a run says at its end."""

    written: Mapping[str, Path]  # by kind: `adapter`, `model`, `vae`, `vae_folder`, `embedding`, `embedding_2` ..., `best`
    out: Path
    steps: int
    pictures: int  # that it learned from, repeats included
    distinct_pictures: int
    held_out: int  # pictures
    verdict: Verdict
    measure: Measure | None  # None where no picture was held out
    round_trip: RoundTrip | None  # of an autoencoder
    best_held_out_loss: float | None
    best_step: int | None
    sheet: Path | None  # of the last pictures beside the base's
    prompt: str  # to draw with
    processes: int
    skipped_updates: int  # by the fp16 scaler
    peak_memory_bytes: int  # of the accelerator
    written_as: Mapping[str, str]  # the free settings that the files depend on
    versions: Mapping[str, str]  # of packages

    @property
    def files(self) -> list[str]:
        """The kinds of what was written."""
        return sorted(self.written)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Summary":
        """From what `record` gives; what an older version did not say is as of a run in one process that measured nothing.

        Raises:
            LookupError, TypeError, ValueError: it is damaged.
        """
        sheet, verdict, best = record.get("sheet"), record.get("verdict", "not measured"), record.get("best_step")
        if verdict not in get_args(Verdict):
            raise ValueError(f"{verdict!r} is no verdict")
        return cls(
            written={kind: Path(record[kind]) for kind in record["files"]},
            out=Path(record["out"]),
            steps=int(record["steps"]),
            pictures=int(record.get("pictures", 0)),
            distinct_pictures=int(record.get("distinct_pictures", 0)),
            held_out=int(record.get("held_out", 0)),
            verdict=verdict,
            measure=_measure(record),
            round_trip=_round_trip(record),
            best_held_out_loss=_maybe(record.get("best_held_out_loss")),
            best_step=None if best is None else int(best),
            sheet=Path(sheet) if sheet else None,
            prompt=str(record.get("prompt", "")),
            processes=int(record.get("processes", 1)),
            skipped_updates=int(record.get("skipped_updates", 0)),
            peak_memory_bytes=int(record.get("peak_memory_bytes", 0)),
            written_as=dict(record["written_as"]),
            versions=dict(record.get("versions", {})),
        )

    def record(self) -> dict[str, Any]:
        """As JSON says it: what `--json` prints, and the file holds."""
        measure = self.measure
        return {kind: str(path) for kind, path in self.written.items()} | {
            "files": self.files,
            "out": str(self.out),
            "steps": self.steps,
            "pictures": self.pictures,
            "distinct_pictures": self.distinct_pictures,
            "held_out": self.held_out,
            "verdict": self.verdict,
            "held_out_loss": measure.loss if measure else None,
            "base_held_out_loss": measure.base if measure else None,
            "held_out_change": {k: getattr(measure, k) for k in ("mean", "low", "high", "pictures")} if measure else None,
            "round_trip_psnr": asdict(self.round_trip) if self.round_trip else None,
            "best_held_out_loss": self.best_held_out_loss,
            "best_step": self.best_step,
            "sheet": str(self.sheet) if self.sheet else None,
            "prompt": self.prompt,
            "processes": self.processes,
            "skipped_updates": self.skipped_updates,
            "peak_memory_bytes": self.peak_memory_bytes,
            "written_as": dict(self.written_as),
            "versions": dict(self.versions),
        }


@dataclass(frozen=True)
class Ended:
    """A run's last file: its summary, and what it says for later runs alone."""

    summary: Summary
    identity: dict[str, Any]  # what must not differ when the run goes on
    sha256: dict[str, str]  # of every file that it handed over, by its path in the run's folder


def write(out: Path, summary: Summary, identity: dict[str, Any]) -> None:
    """The last file that a run writes: with it and the files that it names as they were, the run is finished."""
    files.write_json(RunFolder(out).summary, summary.record() | {"identity": identity, "sha256": _hashes(summary)})


def read(out: Path) -> Ended:
    """What a run's last file says; the paths are those in `out`, wherever the folder was when they were written.

    Raises:
        OSError, ValueError, LookupError, TypeError: there is none, or it is damaged, or of the oldest versions.
    """
    record = _record(out)
    here = {kind: str(path) for kind, path in _files(out, record).items()} | {"out": str(out)}
    if record.get("sheet"):
        here["sheet"] = str(RunFolder(out).samples / _name(record["sheet"]))
    identity, hashes = (record[name] for name in OF_THE_RECORD)
    if not (isinstance(identity, dict) and isinstance(hashes, dict)):
        raise TypeError(f"{RunFolder(out).summary} is damaged")
    return Ended(Summary.of(record | here), identity, hashes)


def files_of(out: Path) -> dict[str, Path]:
    """What a run of any version says that it handed over, by kind. Raises as `read`."""
    return _files(out, _record(out))


def _record(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = from_json(files.read_text(RunFolder(out).summary))
    return record


def _files(out: Path, record: Mapping[str, Any]) -> dict[str, Path]:
    return {kind: out / _name(record[kind]) for kind in record["files"]}


def _name(path: str) -> str:
    return re.split(r"[\\/]", path)[-1]


def _measure(record: Mapping[str, Any]) -> Measure | None:
    if (change := record.get("held_out_change")) is None:
        return None
    loss, base, mean = plain_number(record["held_out_loss"]), plain_number(record["base_held_out_loss"]), plain_number(change["mean"])
    return Measure(loss, base, mean, _maybe(change["low"]), _maybe(change["high"]), int(change["pictures"]))


def _round_trip(record: Mapping[str, Any]) -> RoundTrip | None:
    if (psnr := record.get("round_trip_psnr")) is None:
        return None
    run, base, mean = (plain_number(psnr[name]) for name in ("run", "base", "mean"))
    return RoundTrip(run, base, mean, _maybe(psnr["low"]), _maybe(psnr["high"]), int(psnr["pictures"]))


def _maybe(value: object) -> float | None:
    return None if value is None else plain_number(value)


def ended(out: Path) -> Ended | None:
    """The same; nothing where `read` raises."""
    try:
        return read(out)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return None


def finished(ended: Ended, job: Job) -> bool:
    """Whether a run that ended so has nothing left to do for this job. Without checkpoints it can draw no other prompts."""
    before, now = dict(ended.summary.written_as), written_as(job)
    if dropped(job):
        before.pop("prompts", None)
        now.pop("prompts", None)
    return ended.summary.steps == job.optim.steps and before == now and is_whole(ended)


def is_whole(ended: Ended) -> bool:
    """Whether the files that a run handed over are as it wrote them."""
    return ended.sha256 == _hashes(ended.summary)


def dropped(job: Job) -> bool:
    """Whether such a run removes its checkpoints when it is finished: those of all weights are large."""
    return job.method.kind == "full" and not job.run.keep_finished


def _hashes(summary: Summary) -> dict[str, str]:
    """Of every file that a run handed over, by its path in the run's folder; those that are gone have none."""
    paths: list[Path] = []
    for kind in summary.files:
        place = summary.written[kind]
        paths += sorted(place.rglob("*")) if place.is_dir() else [place]
    return {p.relative_to(summary.out).as_posix(): files.sha256(p) for p in paths if p.is_file()}


def written_as(job: Job) -> dict[str, str]:
    """The free settings that the written files depend on; one that is newer than the record of a run only where it is not its default."""
    tags = {"publish_tags": "yes"} if job.run.publish_tags else {}
    return tags | {
        "name": job.run.name,
        "format": job.run.format,
        "save_dtype": job.run.save_dtype,
        "prompts": "\n".join(job.run.sample_prompt),
    }
