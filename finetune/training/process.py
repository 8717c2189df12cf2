"""One process of a run: its devices, its voice, and the signals that may stop it."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from finetune.config.job import Job
from finetune.errors import Stopped
from finetune.preparation.encoding import Crew
from finetune.results import lock
from finetune.run_folder import RunFolder
from finetune.training import device, signals
from finetune.training.accelerating import Accelerator
from finetune.training.tracking import Tracker


@dataclass
class Process:
    folder: RunFolder
    accelerator: Accelerator
    tracker: Tracker
    log_every: int
    stop: signals.Stop = field(default_factory=signals.Stop)
    polls: int = 0

    @classmethod
    def of(cls, job: Job) -> "Process":
        """Joins the other processes of a run.

        Raises:
            ConfigError: see `device.accelerator_for`.
        """
        accelerator, out = device.accelerator_for(job), job.run.folder
        tracker = Tracker(out, accelerator.is_main_process, job.run.tensorboard)
        return cls(RunFolder(out), accelerator, tracker, job.run.log_every)

    @property
    def main(self) -> bool:
        """Whether it is the one that writes."""
        return self.accelerator.is_main_process

    @property
    def count(self) -> int:
        """Processes of the run."""
        return self.accelerator.num_processes

    @property
    def crew(self) -> Crew:
        """Its part in what is encoded before training."""
        accelerator, tracker = self.accelerator, self.tracker
        return Crew(tracker.phase, tracker.say, self.stop.poll, accelerator.process_index, self.count, accelerator.wait_for_everyone)

    def wait(self) -> None:
        """For all processes."""
        self.accelerator.wait_for_everyone()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hears signals, and holds the run's folder.

        Raises:
            Stopped: a signal came.
        """
        with signals.watch() as self.stop, lock.held(self.folder.path) if self.main else contextlib.nullcontext():
            try:
                yield
            except signals.Interrupted:
                raise Stopped("stopped; what was done is kept", self.stop.number) from None

    def agreed(self) -> bool:
        """Whether a signal came to any process."""
        if self.count > 1:
            number = self.accelerator.gather(torch.tensor([self.stop.number], device=self.accelerator.device))
            self.stop.number = int(number.max())
        return bool(self.stop.number)

    def stopping(self) -> bool:
        """The same, asked after every step."""
        self.polls += 1  # several processes stop at the same step; asking waits on the device, so seldom
        if self.count > 1 and self.polls % self.log_every:
            return False
        return self.agreed()
