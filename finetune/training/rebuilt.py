"""The networks of a run as they began, built from its folder, to write files of weights that it put down on its way."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.config import Job
from finetune.config.optimizers import OPTIMIZERS
from finetune.errors import ConfigError, DataError, line
from finetune.families import trust
from finetune.families.family import Family
from finetune.methods.adapter import Start
from finetune.methods.trainees import ParameterGroup, Trainees, trainees
from finetune.objectives.build import asked
from finetune.preparation import base
from finetune.preparation.data import side
from finetune.preparation.start import start
from finetune.results import checkpoint, export, record
from finetune.results.checkpoint import State, under
from finetune.run_folder import RunFolder, saved_name
from finetune.training import optimizer
from finetune.training.optimizer import own_average


@dataclass(frozen=True)
class Rebuilt:
    folder: Path
    job: Job
    family: Family
    nets: dict[str, nn.Module]
    start: Mapping[str, Start] | None
    trainees: Trainees
    groups: list[ParameterGroup]

    @classmethod
    def of(cls, folder: Path, named: str | None = None) -> "Rebuilt":
        """Of a folder that holds a run; `named` is the base that the user names. What the run names itself is opened only where it is
        known, or the user has trained on it.

        Raises:
            ConfigError: its base is another, and none is named.
        """
        job = record.settings(folder)
        opened = job.model.base if trust.trusted(job.model.base) else named
        if opened is None:
            raise ConfigError(
                f"{folder}: was trained on {line(job.model.base)}, as it says itself, which is no base that is known here",
                f"--base {shlex.quote(line(job.model.base))} uses that, if you trust it",
            )
        job = job.model_copy(update={"model": job.model.model_copy(update={"base": opened, "allow_pickle": False})})
        family = base.opened(job)
        for token in job.method.new_tokens:
            family.words.add(token, job.method.vectors)
        learned = start(job, family)
        trains = trainees(family, job, asked(job.method.kind), learned)
        nets = trains.load()
        return cls(folder, job, family, nets, learned, trains, trains.attach(nets))

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        return optimizer.parameters(self.groups)

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Raises:
        DataError: they are of other parameters than those that the run trains.
        """
        trainable = self.trainable
        if tensors.keys() != trainable.keys():
            raise DataError(f"{self.folder}: its {what} are of other parameters than its run.yaml trains", "train it again")
        for name, parameter in trainable.items():
            parameter.copy_(tensors[name])

    def write(self, step: int, name: str, data: Mapping[str, str]) -> dict[str, Path]:
        """What a run that ended at this step would have written, beside its own files; by kind."""
        job, family = self.job, self.family
        fingerprint = family.source.fingerprint(self.trainees.folder)
        contract = export.contract(job, family, fingerprint, side(job, family), self.start, step)
        return export.Outgoing(self.trainees, RunFolder(self.folder), contract, data).write(self.nets, name)


def write_step(folder: Path, step: int, base: str | None = None) -> dict[str, Path]:
    """Writes what the run of this folder would have written, had it ended at a saved step; by kind. `base` as for `Rebuilt.of`.

    Raises:
        DataError: the step is not there, or damaged.
    """
    saved = RunFolder(folder).checkpoint(step)
    if not checkpoint.is_valid(saved):
        raise DataError(f"{saved}: is damaged", "another saved step, or the same command again")
    tensors = checkpoint.load(saved)
    run = Rebuilt.of(folder, base)
    run.put(under(tensors, "trainable/"), "saved weights")
    if average := _average(run, tensors):
        run.put(average, "saved averages")
    return run.write(step, saved_name(run.job.run.name, step), {})


def _average(run: Rebuilt, saved: State) -> State:
    """The averaged weights, where the job keeps an average, or its optimizer does."""
    o = run.job.optim
    if not OPTIMIZERS[o.optimizer].averages:
        return under(saved, "ema/")
    restored = optimizer.make(optimizer.torch_groups(run.groups), o, run.job.run.seed)
    optimizer.restore(restored, list(run.trainable), under(saved, "optimizer/"))
    return own_average(restored, run.trainable)
