"""Hostile files, each read by whatever its name fits: no code runs, nothing steers the terminal, no line is forged."""

import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from . import fuzz, trial
from .ledger import Ledger
from .readers import Kind
from .scenes import Place

CANARY = "ATTACK_CANARY"  # the file that a payload makes, by its path in this variable
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
DRY = ("--dry-run", "--steps", "1", "--batch", "2", "--resolution", "32")


def attack(ledger: Ledger, place: Place, kinds: dict[str, Kind], folders: list[Path]) -> None:
    folders = [written(place), *folders]
    found = [p for folder in folders if folder.exists() for p in sorted(folder.rglob("*")) if p.name != "README.md" and _whole(p)]
    if not found:
        ledger.note(f"no hostile files in {', '.join(map(str, folders))}")
    canary = place.root / "canary"
    os.environ[CANARY] = str(canary)
    for path in found:
        if not ledger.open():
            return
        for kind in kinds.values():
            if path.is_file() and path.name.lower().endswith(kind.suffixes or ("nothing",)):
                trials = fuzz.Trials(kind, place, ledger)
                trials.seeds = []
                trials.batch([path.read_bytes()])
        for words in commands(path, place):
            canary.unlink(missing_ok=True)
            outcome = trial.fork(partial(guarded, words), limit=30)
            wrong = judged(outcome, canary.exists())
            ledger.count(f"ft {' '.join(words[:2])}"[:20].split(" -")[0], outcome.kind, not wrong, outcome.seconds, outcome.peak)
            if wrong:
                ledger.fail(f"ft {words[0]}", path.name, f"{wrong}\n{' '.join(words)}\n{outcome.output[-3000:]}")


def written(place: Place) -> Path:
    """The hostile files of the tests, which are made by a program."""
    import hostile

    folder = place.root / "hostile"
    folder.mkdir()
    hostile.pictures(folder / "pictures")
    for made in (hostile.recipes(folder), hostile.adapters(place.root / "made" / "lora.safetensors", folder)):
        assert [path for path in made if path.exists()]
    return folder


def _whole(path: Path) -> bool:
    """Files, and folders that are read as one."""
    return path.is_file() or any(
        (path / name).exists() for name in ("model_index.json", "dataset_info.json", "run.yaml", "adapter_config.json")
    )


def guarded(words: list[str]) -> None:
    fuzz.guard()
    trial.command(words)


def commands(path: Path, place: Place) -> Iterator[list[str]]:
    """What a person may type with such a file or folder."""
    it, imgs = str(path), str(place.root / "imgs")
    if path.suffix in (".yaml", ".yml"):
        yield ["lora", "--recipe", it, "--data", imgs, *DRY]
    elif path.suffix == ".safetensors" or (path / "adapter_config.json").exists():
        yield ["adapter", "inspect", it, "--norms"]
        yield ["adapter", "convert", it, "--to", "diffusers", "--out", str(place.work / "made.safetensors")]
        yield ["lora", "--base", it, "--data", imgs, *DRY]
        yield ["lora", "--from", it, "--base", "tiny", "--data", imgs, *DRY]
        yield ["generate", "a", "--base", "tiny", "--adapter", it, "--out", str(place.work / "drawn"), "--steps", "1", "--count", "1"]
    elif path.suffix in (".ckpt", ".bin", ".pt", ".pth", ".pkl"):
        yield ["lora", "--base", it, "--data", imgs, *DRY]
        yield ["lora", "--base", it, "--allow-pickle", "--data", imgs, *DRY]
        yield ["adapter", "inspect", it]
    elif (path / "model_index.json").exists():
        yield ["lora", "--base", it, "--data", imgs, *DRY]
        yield ["generate", "a", "--base", it, "--out", str(place.work / "drawn"), "--steps", "1", "--count", "1"]
    elif (path / "run.yaml").exists():
        yield ["clean", "--dry-run", it]
        yield ["adapter", "inspect", it]
        yield ["lora", "--recipe", str(path / "run.yaml"), "--data", imgs, "--out", it, *DRY]
    elif path.suffix in (".tar", ".parquet") or path.is_dir():
        yield ["data", "check", "--data", it, "--resolution", "32"]
    else:
        yield ["data", "check", "--data", str(_beside(path, place)), "--resolution", "32"]
        yield ["data", "preview", "--data", str(_beside(path, place)), "--resolution", "32", "--out", str(place.work / "sheet.png")]


def _beside(path: Path, place: Place) -> Path:
    """A folder with the file and a sound picture, whose caption it is if it is one."""
    folder = place.root / "beside"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copyfile(path, folder / path.name)
    if not (folder / f"{path.stem}.png").exists():
        shutil.copyfile(place.root / "imgs" / "00.png", folder / f"{path.stem}.png")
    return folder


def judged(outcome: trial.Outcome, ran: bool) -> str:
    """What is wrong with how a command took a hostile file."""
    if ran or "CodeRun" in outcome.text:
        return f"code ran\n{outcome.text}"
    if outcome.kind not in trial.SURVIVED:
        return f"{outcome.kind}\n{outcome.text}"
    if steering := CONTROL.findall(outcome.output.replace("\r", "")):
        return f"control characters in its output: {steering[:5]!r}"
    errors = [line for line in outcome.output.splitlines() if line.startswith(("error:", "hint:"))]
    return "a forged line" if len(errors) > 2 else ""
