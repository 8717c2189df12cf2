"""The commands that are attacked, each small enough to end in half a second, and what their undisturbed end looks like."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import trial
from .compare import Whole, tree

STEPS = 3


@dataclass(frozen=True)
class Scene:
    """A command line, what has to be there before it, and where its results lie."""

    name: str
    words: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()  # command lines that set the scene
    out: str = "out"


@dataclass(frozen=True)
class Place:
    """A folder for one trial after another: pictures and an adapter that stay, `work` that is made anew each time."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def cache(self) -> Path:
        return self.work / "cache"

    def clear(self) -> None:
        """Everything that trials leave goes."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    def words(self, words: tuple[str, ...]) -> list[str]:
        return [word.replace("{work}", str(self.work)).replace("{root}", str(self.root)) for word in words]

    def run(self, words: tuple[str, ...]) -> trial.Outcome:
        """One command line in a child, undisturbed."""
        return trial.fork(partial(trial.command, self.words(words)))

    def set_up(self, scene: Scene) -> None:
        """As it is before the scene's command; what others made for it is made once."""
        kept = self.root / "before" / scene.name
        shutil.rmtree(self.work, ignore_errors=True)
        if scene.before and kept.exists():
            shutil.copytree(kept, self.work, symlinks=True)
            return
        self.work.mkdir(parents=True)
        for words in scene.before:
            outcome = self.run(words)
            assert outcome.kind == trial.OK, outcome
        if scene.before:
            shutil.copytree(self.work, kept, symlinks=True)


SMALL = ("--data", "{root}/imgs", "--base", "tiny", "--batch", "2", "--resolution", "32", "--out", "{work}/out")
RUN = (*SMALL, "--steps", str(STEPS), "--set", "run.checkpoint_every=1")
LORA = ("lora", *RUN, "--rank", "2", "--holdout", "0.2", "--set", "run.holdout_every=2", "--sample-prompt", "red disc")
BARE = ("lora", *RUN, "--rank", "2", "--no-samples", "--no-holdout")
SUBJECT = ("--token", "sks", "--class", "disc", "--class-count", "2", "--set", "subject.class_steps=1", "--no-samples")
WHOLE = ("dreambooth", *SMALL, *SUBJECT, "--set", "run.keep_finished=true", "--set", "run.checkpoint_every=1")
TOKEN = ("textual-inversion", *RUN, "--token", "<x>", "--no-samples")
VERIFY = ("adapter", "verify", "{root}/made/lora.safetensors", "--base", "tiny", "--json")
SCENES = {
    scene.name: scene
    for scene in (
        Scene("lora", LORA),
        Scene("lora averages", (*BARE, "--set", "optim.ema_posthoc=true")),
        Scene("dreambooth", (*WHOLE, "--steps", "3"), before=((*WHOLE, "--steps", "2"),)),
        Scene("textual inversion", TOKEN),
        Scene("data cache", ("data", "cache", *SMALL[:-2]), out="cache"),
        Scene("convert", ("adapter", "convert", "{root}/made/lora.safetensors", "--to", "peft", "--out", "{work}/out/peft")),
        Scene("verify", VERIFY),
    )
}


def warm(root: Path) -> Place:
    """Pictures, an adapter, and everything imported that a run imports, so that a child need not."""
    import torch

    torch.set_num_threads(1)
    for folder in (root.resolve() / name for name in ("imgs", "work")):
        folder.mkdir(parents=True, exist_ok=True)
    place = Place(root.resolve())
    os.environ |= {"FT_CACHE": str(place.cache), "FT_CONFIG": str(root / "no.yaml"), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    os.environ.pop("FT_BASE", None)
    pictures(place.root / "imgs", 6)
    _draw_quickly()
    with quiet():
        trial.command([*place.words(BARE), "--out", str(place.root / "made")])
        trial.command(place.words(LORA))
        trial.command(place.words(VERIFY))
        trial.command(place.words(SCENES["convert"].words))
    return place


def _draw_quickly() -> None:
    """From here on in this process, samples are drawn in two steps: it is their writing that is attacked."""
    from finetune.families.family import Family

    usual: Any = Family.inference
    setattr(Family, "inference", lambda family: (2, usual(family)[1]))  # noqa: B010


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of this process is shown, whoever writes it."""
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    try:
        yield
    finally:
        for number, handle in zip((1, 2), kept, strict=True):
            (sys.stdout, sys.stderr)[number - 1].flush()
            os.dup2(handle, number)
            os.close(handle)
        os.close(nowhere)


def pictures(folder: Path, count: int) -> Path:
    """Random pictures of two shapes, with captions."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32 + 8 * (i % 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"{'red blue green'.split()[i % 3]} disc", encoding="utf-8")
    return folder


def undisturbed(place: Place, scene: Scene) -> Whole:
    """What the scene's command leaves, made twice."""
    trees = []
    for _ in range(2):
        place.set_up(scene)
        outcome = place.run(scene.words)
        assert outcome.kind == trial.OK, f"{scene.name}: {outcome}"
        trees.append(tree(place.work / scene.out))
    return Whole.of(*trees)
