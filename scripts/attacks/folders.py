"""Folders that are read as one: a run's, a saved dataset's, PEFT's, with one of their files made worse."""

import os
import shutil
from pathlib import Path

from . import scenes, trial
from .seeds import PLAIN, packed, small

SINGLE = (
    "dreambooth",
    *scenes.SMALL,
    "--token",
    "sks",
    "--class",
    "disc",
    "--prior-weight",
    "0",
    "--no-samples",
    "--steps",
    "1",
    "--format",
    "single",
)


def unpacked(of: Path, folder: Path, data: bytes) -> Path:
    """The folder with one of its files replaced by the input; the others are links where they are large."""
    made = folder / "it"
    names = [p.relative_to(of) for p in sorted(of.rglob("*")) if p.is_file()]
    for name in names:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        if (of / name).stat().st_size > 2**17:
            os.link(of / name, made / name)
        else:
            shutil.copyfile(of / name, made / name)
    if data:
        chosen = made / names[data[0] % len(names)]
        chosen.unlink()
        chosen.write_bytes(data[1:])
    return made


def run_seeds(place: scenes.Place) -> list[bytes]:
    return packed(place.root / "made")


def read_run(place: scenes.Place, folder: Path, data: bytes) -> None:
    """What looks into a run's folder before it goes on, and what lists it."""
    from finetune.config.precedence import parse, read_yaml
    from finetune.results import checkpoint, clean, earlier, finished

    made = unpacked(place.root / "made", folder, data)
    clean.look(clean.runs(folder), whole=True)
    job = parse(read_yaml(made / "run.yaml"))
    job = job.model_copy(update={"run": job.run.model_copy(update={"out": made})})
    finished.summary(job)
    for one in checkpoint.valid(made / "checkpoints"):
        checkpoint.load(one)
        checkpoint.facts(one)
    earlier.Earlier.of(job).refuse({})


def saved_seeds(place: scenes.Place) -> list[bytes]:
    return packed(place.root / "saved")


def read_saved(place: scenes.Place, folder: Path, data: bytes) -> None:
    from .readers import scanned

    scanned(unpacked(place.root / "saved", folder, data))


def peft_seeds(place: scenes.Place) -> list[bytes]:
    return packed(place.root / "peft")


def read_peft(place: scenes.Place, folder: Path, data: bytes) -> None:
    from finetune.adapters import inspect
    from finetune.adapters.read import read

    made = unpacked(place.root / "peft", folder, data)
    try:
        inspect.inspect(made).text()
    finally:
        read(made)


def prepare(place: scenes.Place) -> None:
    """What kinds take as sound: a run with a new token, bases, a saved dataset, a PEFT folder."""
    import datasets

    from finetune.families.source import resolve_base

    with scenes.quiet():
        lines = (
            (*scenes.TOKEN, "--out", "{root}/words"),
            ("adapter", "convert", "{root}/made/lora.safetensors", "--to", "peft", "--out", "{root}/peft"),
            (*SINGLE, "--out", "{root}/single"),
        )
        for words in lines:
            assert (made := place.run(words)).kind == trial.OK, made
        if not (place.root / "base").exists():
            shutil.copytree(resolve_base("tiny").folder, place.root / "base")
        table = datasets.Dataset.from_dict({"image": [{"bytes": small(), "path": None}] * 2, "text": [PLAIN, "x"]})
        table.cast_column("image", datasets.Image()).save_to_disk(place.root / "saved")
