"""What a run says of itself: `metrics.jsonl` always, a progress bar or plain lines, TensorBoard when asked."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.errors import ConfigError, unbroken
from finetune.results import metrics
from finetune.run_folder import RunFolder

SMOOTHING = 0.9


class Board(Protocol):
    """TensorBoard's writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Adds a number to a curve."""

    def close(self) -> None:
        """Writes what is not on disk yet."""


class Log(Protocol):
    """Told of the loss at a step, the learning rate, and every how many steps it is told."""

    def __call__(self, step: int, loss: float, rate: float, every: int) -> None: ...


class Tracker:
    """Messages go to stderr; stdout is for data. Every process but the first is silent."""

    def __init__(self, folder: Path, active: bool, tensorboard: bool = False) -> None:
        self.active = active
        self.console = Console(stderr=True, quiet=not active, highlight=False)
        self.path = RunFolder(folder).metrics
        self.smooth: float | None = None
        self.board: Board | None = None
        if active and tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as e:
                raise ConfigError(
                    "run.tensorboard: the package tensorboard is not installed", "pip install tensorboard, or leave run.tensorboard out"
                ) from e
            self.board = SummaryWriter(str(RunFolder(folder).tensorboard))

    def say(self, message: str) -> None:
        self.console.print(escape(unbroken(message)), soft_wrap=True)

    def rewind(self, step: int) -> None:
        """Forgets metrics after `step`, which a resumed run writes again, and what is none; goes on from those that stay."""
        self.smooth = metrics.rewind(self.path, step) if self.active else None

    def metrics(self, step: int, **values: float | list[float]) -> None:
        if not self.active:
            return
        metrics.append(self.path, step, values)
        if self.board:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.board.add_scalar(name, value, step)

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar on a terminal; off one, a line when the phase ends. Yields a function that counts one."""
        began, count = time.monotonic(), 0
        with self._progress(escape(unbroken(name)), total) as advance:

            def tick() -> None:
                nonlocal count
                count += 1
                advance(count, "")

            yield tick
        if not self.console.is_terminal:
            self.say(f"{name}: {count} in {time.monotonic() - began:.1f} s")

    @contextmanager
    def drawing(self, name: str, total: int) -> Iterator[Callable[[float], None]]:
        """A bar on a terminal, nothing off one. Yields a function that is told how many are done, parts included."""
        with self._progress(name, total) as advance:
            yield lambda done: advance(done, "")

    @contextmanager
    def training(self, first: int, steps: int) -> Iterator[Log]:
        """Yields what shows a step: the bar or a plain line with loss, steps/s and time left."""
        began = time.monotonic()
        with self._progress("training", steps, first) as advance:

            def log(step: int, loss: float, rate: float, every: int) -> None:
                self.smooth = loss if self.smooth is None else SMOOTHING * self.smooth + (1 - SMOOTHING) * loss
                speed = (step - first) / max(1e-9, time.monotonic() - began)
                left = (steps - step) / max(speed, 1e-9)
                text = f"loss {self.smooth:.4f}  {speed:.1f} steps/s"
                advance(step, text)
                # Plain lines thin out, about twenty a run.
                if not self.console.is_terminal and (step == steps or step % (every * max(1, steps // (20 * every))) == 0):
                    self.say(f"step {step}/{steps}  {text}  {left:.0f} s left")
                self.metrics(step, loss=loss, loss_smooth=self.smooth, lr=rate, steps_per_second=speed)

            yield log

    @contextmanager
    def _progress(self, name: str, total: int, first: int = 0) -> Iterator[Callable[[float, str], None]]:
        if not (self.active and self.console.is_terminal):
            yield lambda done, text: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=False) as bar:
            task = bar.add_task(name, total=total, completed=first, text="")
            yield lambda done, text: bar.update(task, completed=done, text=text)

    def close(self) -> None:
        if self.board:
            self.board.close()
        sys.stderr.flush()
