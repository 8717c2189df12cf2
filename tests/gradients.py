"""The gradient of one step, for any split of the global batch; run under torchrun it prints process 0's as a file."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from finetune import config
from finetune.training.loop import Step, gradient
from finetune.training.run import Runner

WEIGHTS = (1.0, 0.5, 2.0, 1.0, 0.25, 3.0, 1.0)


def gradients(settings: dict[str, Any], dtype: torch.dtype, step: int, weights: Sequence[float] | None = WEIGHTS) -> dict[str, Tensor]:
    """Gradients by parameter, with unequal sample weights; `step` chooses the batch."""
    runner = Runner(config.parse(settings))
    runner.prepare()
    runner.encode()
    for sample, weight in zip(runner.pictures.train, weights or [1.0] * len(runner.pictures.train), strict=True):
        object.__setattr__(sample, "weight", weight)
    runner.family.base.dtype = dtype
    with mock.patch("finetune.training.run.Step", lambda *parts: Step(*parts).to(dtype)):  # before it is wrapped
        training, _ = runner.assemble()
    training.encoded.place(torch.device("cpu"), 2**30)
    for row in training.encoded.placed.values():
        row |= {k: v.to(dtype) for k, v in row.items() if k != "crop"}
    with torch.no_grad():
        for i, p in enumerate(training.trainable.values()):  # B starts at 0, and then A has no gradient
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) * 0.05)
    gradient(training, step)
    return {n: p.grad.detach().clone() for n, p in training.trainable.items() if p.grad is not None}


if __name__ == "__main__":
    recipe, step, dtype, out = sys.argv[1:]
    torch.set_num_threads(1)
    found = gradients(config.read_yaml(Path(recipe)), getattr(torch, dtype), int(step))
    if torch.distributed.get_rank() == 0:
        save_file(found, out)
