"""An earlier run in the same folder: how far it came, whether this job may go on from it, and whether it is finished."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.job import Job
from finetune.data.sample import Pictures
from finetune.errors import ConfigError
from finetune.training import checkpoint, record, summary


@dataclass(frozen=True)
class Earlier:
    """What a folder holds of a run that this one may be the continuation of."""

    out: Path
    checkpoint: Path | None  # the newest valid one
    ended: dict[str, Any] | None  # its last file, with its identity and its files' hashes

    @classmethod
    def of(cls, out: Path) -> "Earlier":
        return cls(out, next(checkpoint.valid(out / "checkpoints"), None), summary.ended(out))

    @property
    def facts(self) -> dict[str, Any] | None:
        """Its `identity`, and the `steps` that it was to have; None where nothing is left of a run that could go on, or was finished."""
        return checkpoint.facts(self.checkpoint) if self.checkpoint else self.ended

    def refuse(self, job: Job, identity: dict[str, Any]) -> None:
        """What can be refused before class pictures are drawn; `identity` is still without the pictures.

        Raises:
            ConfigError: it has other settings, or more steps, or nothing to go on from.
        """
        if (facts := self.facts) is None:
            return
        record.refuse_changes({k: v for k, v in facts["identity"].items() if k in identity}, identity, self.out)
        done = facts["step"] if self.checkpoint else facts["steps"]
        if done > job.optim.steps:
            hint = "give more steps, or --fresh to start over"
            raise ConfigError(f"--steps {job.optim.steps}: {self.out} has {done} steps already", hint)
        if self.checkpoint is None and not self.finished(job):
            raise ConfigError(
                f"{self.out}: holds a finished run of {done} steps without checkpoints, which can neither go on nor be written anew",
                "--fresh starts over, another --out or --name keeps both; run.keep_finished keeps the checkpoints of all weights",
            )

    def refuse_pictures(self, job: Job, identity: dict[str, Any], pictures: Pictures, say: Callable[[str], None]) -> None:
        """Raises:
        ConfigError: pictures, captions or settings differ, with the names of those that changed.
        """
        if (facts := self.facts) is None:
            if damaged := len(checkpoint.steps(self.out / "checkpoints")):
                say(f"no checkpoint in {self.out / 'checkpoints'} is whole ({damaged} damaged); starting over")
            return
        record.refuse_changes(facts["identity"], identity, self.out, pictures)
        if facts["steps"] != job.optim.steps and job.optim.schedule != "constant":
            say(
                f"note: the {job.optim.schedule} schedule of {facts['steps']} steps is now one of {job.optim.steps}; "
                "the result is not that of so many steps from the start"
            )

    def finished(self, job: Job) -> dict[str, Any] | None:
        """What it said at its end, if nothing is left to do for this job."""
        return summary.public(self.ended) if self.ended and summary.finished(self.ended, job) else None
