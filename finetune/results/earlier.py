"""An earlier run in the same folder: how far it came, whether this job may go on from it, and whether it is finished."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.config.job import Job
from finetune.data.sample import Pictures
from finetune.errors import ConfigError
from finetune.results import checkpoint, record, summary
from finetune.results.progress import Progress
from finetune.results.summary import Ended, Summary
from finetune.run_folder import RunFolder


@dataclass(frozen=True)
class Earlier:
    """What the job's folder holds of a run that this one may be the continuation of."""

    job: Job
    checkpoint: Path | None  # the newest valid one
    progress: Progress | None  # what that one notes
    ended: Ended | None  # its last file, with its identity and its files' hashes

    @classmethod
    def of(cls, job: Job) -> "Earlier":
        newest, ended = next(checkpoint.valid(RunFolder(job.run.folder).checkpoints), None), summary.ended(job.run.folder)
        return cls(job, newest, Progress.of(checkpoint.facts(newest)) if newest else None, ended)

    @property
    def identity(self) -> dict[str, Any] | None:
        """Its settings, base and pictures; None where it could not go on and was not finished."""
        if self.progress:
            return self.progress.identity
        return self.ended.identity if self.ended else None

    @property
    def steps(self) -> int:
        """How many it was to have; 0 where it could not go on and was not finished."""
        if self.progress:
            return self.progress.steps
        return self.ended.summary.steps if self.ended else 0

    def refuse(self, identity: dict[str, Any]) -> None:
        """What can be refused before class pictures are drawn; `identity` is still without the pictures.

        Raises:
            ConfigError: it has other settings, or more steps, or nothing to go on from.
        """
        if (before := self.identity) is None:
            return
        out, steps = self.job.run.folder, self.job.optim.steps
        record.refuse_changes({k: v for k, v in before.items() if k in identity}, identity, out)
        done = self.progress.step if self.progress else self.steps
        if done > steps:
            raise ConfigError(f"--steps {steps}: {out} has {done} steps already", "give more steps, or --fresh to start over")
        if self.checkpoint is None and not self.finished:
            raise ConfigError(
                f"{out}: holds a finished run of {done} steps without checkpoints, which can neither go on nor be written anew",
                "--fresh starts over, another --out or --name keeps both; run.keep_finished keeps the checkpoints of all weights",
            )

    def refuse_pictures(self, identity: dict[str, Any], pictures: Pictures, say: Callable[[str], None]) -> None:
        """Raises:
        ConfigError: pictures, captions or settings differ, with the names of those that changed.
        """
        out, o = self.job.run.folder, self.job.optim
        if self.identity is None:
            if damaged := len(checkpoint.steps(RunFolder(out).checkpoints)):
                say(f"no checkpoint in {RunFolder(out).checkpoints} is whole ({damaged} damaged); starting over")
            return
        record.refuse_changes(self.identity, identity, out, pictures)
        if self.steps != o.steps and o.schedule != "constant":
            say(
                f"note: the {o.schedule} schedule of {self.steps} steps is now one of {o.steps}; "
                "the result is not that of so many steps from the start"
            )

    @cached_property
    def finished(self) -> Summary | None:
        """What it said at its end, if nothing is left to do for this job. Reads all files that it handed over, once."""
        return self.ended.summary if self.ended and summary.finished(self.ended, self.job) else None
