"""What a run's folder says of the run: what it learned from, whether it may go on, and whether it is finished."""

import importlib.metadata
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune import __version__, files
from finetune.adapters.card import card_path
from finetune.config.job import FREE_SETTINGS, Job
from finetune.config.precedence import dump, parse, read_yaml, section_model
from finetune.data import sample
from finetune.data.sample import Pictures
from finetune.errors import ConfigError
from finetune.results import checkpoint
from finetune.run_folder import RunFolder
from finetune.text import from_json

# Settings that `identity` holds in another form: as content, and as the global batch.
COVERED = {
    "data.path", "data.sources", "data.image_column", "data.caption_column", "data.split",
    "data.caption", "data.trigger", "data.holdout", "data.template", "optim.batch", "optim.accumulate",
    "subject.class_data", "subject.class_count", "subject.class_steps", "subject.class_guidance", "subject.class_batch",
    "method.start", "model.vae",
}  # fmt: skip
PACKAGES = ("torch", "diffusers", "peft", "accelerate", "transformers", "safetensors")
MOST_PICTURES = 20_000  # that are told apart by name
PICTURES = "pictures and captions"
SHAPES = "data.bucket_merge"


def identity(job: Job, base: dict[str, str], batch: int) -> dict[str, Any]:
    """What must not differ when a run goes on, besides its PICTURES: every setting but the free ones, the base, the global batch."""
    kept: dict[str, Any] = {}
    for section, values in job.model_dump(mode="json").items():
        kept |= {f"{section}.{k}": v for k, v in values.items() if f"{section}.{k}" not in FREE_SETTINGS | COVERED}
    return kept | {"base weights and configs": base, "global batch": batch}


def refuse_changes(before: dict[str, Any], now: dict[str, Any], out: Path, pictures: Pictures | None = None) -> None:
    """Raises:
    ConfigError: with the name of every setting that differs, and of every one of the `pictures`.
    """
    before = _defaults(now.keys() - before.keys(), pictures) | before
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    if changed:
        shown = [_shown(k, before.get(k), now.get(k)) for k in changed]
        if pictures and PICTURES in changed and (how := _changed_pictures(out, pictures)):
            shown[changed.index(PICTURES)] = f"{PICTURES} ({how})"
        raise ConfigError(
            f"{out} holds a run with other settings: {', '.join(shown)}",
            "--fresh starts over, another --out or --name keeps both; --steps, logging and samples may change",
        )


def _shown(setting: str, before: object, now: object) -> str:
    return setting if len(str(now)) > 40 else f"{setting} (was {before}, now {now})"


def _defaults(names: Iterable[str], pictures: Pictures | None) -> dict[str, Any]:
    """What a run did in the place of settings that are newer than it is: their defaults."""
    out: dict[str, Any] = {}
    for name in names:
        section, dot, key = name.partition(".")
        if dot:
            out[name] = section_model(section).model_fields[key].default
    if SHAPES in out and pictures and len({s.size for s in pictures.train}) > 1:
        del out[SHAPES]  # before there was a choice, pictures of several shapes came in another order
    plain: dict[str, Any] = json.loads(json.dumps(out))
    return plain


def settings(out: Path) -> Job:
    """Those of the run in a folder.

    Raises:
        ConfigError: there is none, or its record is damaged or of another version.
    """
    return parse(read_yaml(RunFolder(out).record))


def write_settings(out: Path, job: Job) -> None:
    """The record by which a run goes on and is repeated, and its folder is known."""
    files.write_text(RunFolder(out).record, dump(job))


def write_pictures(out: Path, pictures: Pictures) -> None:
    """What a run learns from, by names, so that a refusal to go on can say which changed; of very many it would be a large file."""
    if len(pictures.all) <= MOST_PICTURES:
        files.write_json(RunFolder(out).pictures, pictures.record())


def _changed_pictures(out: Path, pictures: Pictures) -> str:
    try:
        before = from_json(files.read_text(RunFolder(out).pictures))
        return sample.changed(before, pictures.record())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # of an older run, or damaged
        return ""


def clear(out: Path) -> None:
    """Removes what an earlier run wrote, and nothing else: where there is no `run.yaml`, nothing."""
    if not RunFolder(out).record.exists():
        return
    checkpoint.remove(RunFolder(out).checkpoints)
    for path in kept_files(out):
        path.unlink(missing_ok=True)


def kept_files(out: Path) -> list[Path]:
    """The files that a run keeps beside its checkpoints and results, there or not."""
    run = RunFolder(out)
    written = [*run.drawn, *run.snapshots, run.best, run.metrics, run.summary, run.pictures, run.finished, run.record]
    return [*written, run.readme] if card_path(out, "") == run.readme else written


def versions() -> dict[str, str]:
    """Of the packages that a run's numbers depend on, and of Python."""
    versions = {n: importlib.metadata.version(n) for n in PACKAGES}
    return versions | {"finetune": __version__, "python": platform.python_version()}
