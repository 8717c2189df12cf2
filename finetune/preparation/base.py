"""The first stage: the base of a job, found on this disk, or downloaded where its weights are needed."""

from dataclasses import replace

import torch

from finetune import files
from finetune.adapters import decoder
from finetune.config.job import Job
from finetune.families import load, source
from finetune.families.catalogue import PARTS
from finetune.families.family import Family
from finetune.families.source import Source
from finetune.objectives.build import asked
from finetune.results import outcome

AUTOENCODER_ALONE = frozenset({"vae"})


def located(job: Job, name: str | None = None, weights: bool = True) -> Source:
    """Where the job's base lies, or another by `name`; with `weights` it may be downloaded or unpacked for that."""
    m = job.model
    parts = AUTOENCODER_ALONE if asked(job.method.kind) == AUTOENCODER_ALONE else PARTS
    where = source.resolve_base(
        name or m.base, m.variant, weights=weights, prediction=m.prediction_type, allow_pickle=m.allow_pickle, parts=parts
    )
    if m.vae and name is None:
        where = decoder.in_place(where, outcome.autoencoder_of(m.vae), weights)
    return replace(where, zero_snr=job.objective.zero_terminal_snr)


def tried(job: Job, name: str) -> Source:
    """The base of a `name` whose autoencoder is tried; or the job's own with the autoencoder that a run made, by its folder."""
    path = files.home(name)
    if outcome.find(path) is None:
        return located(job, name)
    return decoder.in_place(located(job), outcome.autoencoder_of(path))


def opened(job: Job, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Family:
    """The job's base, of which nothing but tokenizers is loaded yet."""
    return load.family(located(job), device, dtype)


def weightless(job: Job) -> Family:
    """The job's base from its configs alone, for what only counts."""
    return load.family(located(job, weights=False))
