"""What single choices do to a step on the embedded base: python scripts/bench_steps.py stratified|optimizers

`stratified`: the variance of the loss and of its gradient from step to step, with noise levels that are drawn alone and spread evenly.
`optimizers`: seconds of a step's update for each optimizer that runs here, and of AdamW over one flat tensor. Prints JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from finetune import config
from finetune.config.optim import Optim
from finetune.config.optimizers import OPTIMIZERS
from finetune.methods.trainees import ParameterGroup
from finetune.training import optimizer
from finetune.training.loop import Training, gradient
from finetune.training.run import begun

PICTURES = Path(__file__).parents[1] / "tests" / "fluent"


def assembled(batch: int, stratified: bool, out: Path) -> Training:
    """A run before its first step; up matrices that are not 0, so that all have a gradient."""
    runner = begun(
        config.parse(
            {
                "model": {"base": "tiny"}, "data": {"path": str(PICTURES), "caption_dropout": 0.0}, "optim": {"batch": batch},
                "method": {"targets": "all-linear"}, "objective": {"stratified": stratified}, "run": {"out": str(out)},
            }
        )
    )  # fmt: skip
    training = runner.training
    with torch.no_grad():
        for i, p in enumerate(training.trainable.values()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.02)
    return training


def variances(training: Training, steps: int) -> tuple[float, float]:
    """Of the loss, and of the gradient, summed over its numbers: at weights that stay."""
    losses, total, squares = [], None, 0.0
    for step in range(steps):
        losses.append(float(gradient(training, step)))
        flat = torch.cat([p.grad.flatten() for p in training.trainable.values() if p.grad is not None]).double()
        for p in training.trainable.values():
            p.grad = None
        total, squares = flat if total is None else total + flat, squares + float(flat.square().sum())
    assert total is not None
    return statistics.variance(losses), (squares - float(total.square().sum()) / steps) / (steps - 1)


def stratified(steps: int = 150) -> dict[str, Any]:
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for batch in (4, 16):
            alone, spread = (variances(assembled(batch, s, Path(folder)), steps) for s in (False, True))
            made[f"batch {batch}"] = {
                "variance of the loss, spread / alone": round(spread[0] / alone[0], 3),
                "variance of the gradient, spread / alone": round(spread[1] / alone[1], 3),
            }
    return made


def update_times(rounds: int = 60) -> dict[str, float]:
    """Milliseconds, medians of turns, for the tensors of a rank-8 adapter on all linear layers of the embedded base."""
    with tempfile.TemporaryDirectory() as folder:
        shapes = [p.shape for p in assembled(1, False, Path(folder)).trainable.values()]
    made = {}
    for name, entry in OPTIMIZERS.items():
        if not entry.cuda:
            own = {str(i): torch.nn.Parameter(torch.randn(s) * 0.02) for i, s in enumerate(shapes)}
            groups = optimizer.torch_groups([ParameterGroup(own, 1e-4, 0.01)])
            made[name] = (list(own.values()), optimizer.make(groups, Optim(optimizer=name), 0))
    flat = torch.nn.Parameter(torch.randn(sum(s.numel() for s in shapes)) * 0.02)
    made["adamw, flat"] = ([flat], optimizer.make(optimizer.torch_groups([ParameterGroup({"flat": flat}, 1e-4, 0.01)]), Optim(), 0))
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 5):
        for name, (parameters, inner) in made.items():
            for p in parameters:
                p.grad = torch.randn_like(p)
            start = time.perf_counter()
            inner.step()
            if turn >= 5:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(statistics.median(t), 2) for name, t in times.items()} | {"tensors": len(shapes)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stratified", "optimizers"])
    print(json.dumps(stratified() if parser.parse_args().what == "stratified" else update_times(), indent=2))
