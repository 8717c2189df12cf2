"""The names of what a run leaves in its folder: each is written here and nowhere else. Imports no other module of the package, so that
every room may ask whether a folder is that of a run."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

RECORD = "run.yaml"  # by which a folder is known as that of a run
STATE, FACTS, MANIFEST = "state.safetensors", "state.json", "manifest.json"  # of a checkpoint
BEST = "best.safetensors"  # beside checkpoints
STEPS = "step-*"  # of checkpoints, averages and samples alike
HALVES = (".tmp-step-*", ".old-step-*")  # of checkpoints: what a killed save left
_STEP = re.compile(r"step-(\d+)")
_SAMPLE = re.compile(r"step-(\d{6,})-([0-9a-f]{6})\.png")


class DrawnSample(NamedTuple):
    """A picture that was drawn at a step; those of one prompt have one `key`, six hexadecimal digits."""

    step: int
    key: str
    path: Path


@dataclass(frozen=True)
class RunFolder:
    """Where in the folder `path` a run has what; nothing says that it is there."""

    path: Path

    @property
    def record(self) -> Path:
        """The settings of the run, by which it goes on and is repeated."""
        return self.path / RECORD

    @property
    def metrics(self) -> Path:
        """A line of JSON for each step that was logged or measured."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """What the run says at its end, in the last file that it writes."""
        return self.path / "summary.json"

    @property
    def finished(self) -> Path:
        """By which a finished run is known again without a look at its pictures."""
        return self.path / "finished.json"

    @property
    def pictures(self) -> Path:
        """What the run learned from, by names."""
        return self.path / "pictures.json"

    @property
    def lock(self) -> Path:
        """Held by the process that writes the folder. Begins with a dot, so that no scan takes it for data."""
        return self.path / ".lock"

    @property
    def job(self) -> Path:
        """What the first of several processes hands to the others."""
        return self.path / ".job.yaml"

    @property
    def readme(self) -> Path:
        """The model card; of somebody else where the run did not write it."""
        return self.path / "README.md"

    def card(self, name: str) -> Path:
        """The model card where somebody's README is in its place."""
        return self.path / f"{name}-card.md"

    @property
    def tensorboard(self) -> Path:
        """What TensorBoard reads."""
        return self.path / "tensorboard"

    @property
    def ahead(self) -> Path:
        """Under which the cache notes what was encoded ahead of the run; no such folder is ever made."""
        return self.path / "ahead"

    @property
    def checkpoints(self) -> Path:
        """The folder of the saved steps, each a folder."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The folder of one saved step."""
        return step_folder(self.checkpoints, step)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those that every run may have, whatever it is called."""
        return self.checkpoints, self.averages, self.samples, self.tensorboard

    @property
    def best(self) -> Path:
        """What trains, with the lowest held-out loss."""
        return self.checkpoints / BEST

    @property
    def averages(self) -> Path:
        """The folder of the snapshots from which an average of any length is made."""
        return self.path / "averages"

    def snapshot(self, step: int) -> Path:
        """The averages as they were at a step."""
        return self.averages / f"{_step(step)}.safetensors"

    @property
    def snapshots(self) -> list[Path]:
        """Those that are there, in the order of their steps."""
        return sorted(self.averages.glob(f"{STEPS}.safetensors"))

    @property
    def samples(self) -> Path:
        """The folder of the pictures that are drawn on the way, and of their sheets."""
        return self.path / "samples"

    def sample(self, step: int, key: str) -> Path:
        """The picture of one prompt at a step."""
        return self.samples / f"step-{step:06d}-{key}.png"

    def sheet(self, step: int) -> Path:
        """The pictures of a step beside the base's."""
        return self.samples / f"step-{step:06d}.png"

    @property
    def drawn(self) -> list[Path]:
        """The pictures and sheets that are there."""
        return sorted(self.samples.glob(f"{STEPS}.png"))

    @property
    def pictures_drawn(self) -> list[DrawnSample]:
        """The pictures that are there, in the order of their steps, without the sheets."""
        named = ((path, _SAMPLE.fullmatch(path.name)) for path in self.drawn)
        return sorted(DrawnSample(int(name[1]), name[2], path) for path, name in named if name)

    @property
    def parts(self) -> tuple[Path, Path, Path]:
        """The folders in which files are written one by one."""
        return self.checkpoints, self.samples, self.averages

    def weights(self, name: str) -> Path:
        """What is handed over as one file: an adapter, a whole model, or the only new token's embedding."""
        return self.path / f"{name}.safetensors"

    def peft(self, name: str) -> Path:
        """An adapter in PEFT's layout, a folder."""
        return self.path / name

    def model(self, name: str, run: str) -> Path:
        """A whole model as a folder of diffusers: of the `run` itself `model`, else its name with what is behind the run's."""
        return self.path / (f"model{name.removeprefix(run)}" if name.startswith(run) else name)

    def autoencoder(self, name: str) -> Path:
        """An autoencoder as a folder of diffusers; `weights` is the same as one file."""
        return self.path / name

    def embedding(self, name: str, token: str, number: int | None = None) -> Path:
        """The embedding of one of several new tokens; a `number` tells those apart whose words are written alike."""
        return self.weights(f"{name}-{token}" if number is None else f"{name}-{token}-{number}")


def step_folder(root: Path, step: int) -> Path:
    """The folder of one saved step below the folder of all."""
    return root / _step(step)


def typed(root: Path, step: int) -> Path:
    """The same as a person types it, which is read as well."""
    return root / f"step-{step}"


def step_of(name: str) -> int | None:
    """The step that a checkpoint's folder, or a snapshot's file without its ending, is named after."""
    number = _STEP.fullmatch(name)
    return int(number[1]) if number else None


def _step(step: int) -> str:
    return f"step-{step:08d}"


def best_name(name: str) -> str:
    """The name of what had the lowest held-out loss, beside that of the run's last step."""
    return f"{name}-best"


def saved_name(name: str, step: int) -> str:
    """The name of a saved step that is written as a file of its own."""
    return f"{name}-step-{step}"


def average_name(name: str, length: float) -> str:
    """The name of an average whose length was chosen after the run."""
    return f"{name}-average-{length:g}"
