"""The gradient of one step, for any split of the global batch; run under torchrun it writes process 0's of each recipe as a file."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from finetune import config, libraries
from finetune.training.loop import gradient
from finetune.training.process import Process
from finetune.training.ready import ready
from finetune.training.run import begin
from finetune.training.step import Step

WEIGHTS = (1.0, 0.5, 2.0, 1.0, 0.25, 3.0, 1.0)


def gradients(settings: dict[str, Any], dtype: torch.dtype, step: int, weights: Sequence[float] | None = WEIGHTS) -> dict[str, Tensor]:
    """Gradients by parameter, with unequal sample weights; `step` chooses the batch."""
    job = config.parse(settings)
    process = Process.of(job)
    prepared = ready(process, job, fresh=False)
    train = prepared.data.pictures.train
    for sample, weight in zip(train, weights or [1.0] * len(train), strict=True):
        object.__setattr__(sample, "weight", weight)
    prepared.work.family.base.dtype = dtype
    with mock.patch("finetune.training.run.Step", lambda *parts: Step(*parts).to(dtype)):  # before it is wrapped
        training = begin(process, prepared).training
    training.encoded.place(torch.device("cpu"), 2**30)
    for row in training.encoded.placed.values():
        row |= {k: v.to(dtype) for k, v in row.items() if k != "crop"}
    with torch.no_grad():
        for i, p in enumerate(training.trainable.values()):  # B starts at 0, and then A has no gradient
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) * 0.05)
    gradient(training, step)
    return {n: p.grad.detach().clone() for n, p in training.trainable.items() if p.grad is not None}


if __name__ == "__main__":  # [[recipe, dtype, file], ...]: one start, of about 8 seconds of CPU for two processes, is enough for all
    libraries.set_aside("bitsandbytes")  # as `ft` does: with torch's compiler it takes a second of each process
    torch.set_num_threads(1)
    for recipe, dtype, out in json.loads(sys.argv[1]):
        found = gradients(config.read_yaml(Path(recipe)), getattr(torch, dtype), 1)
        if torch.distributed.get_rank() == 0:
            save_file(found, out)
