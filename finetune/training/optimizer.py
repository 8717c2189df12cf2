"""AdamW on fp32 masters, the learning rate as a function of the step, and an update that a non-finite gradient cannot pass."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.methods.method import Group
from finetune.training.checkpoint import State

# Multipliers of the peak rate, as functions of progress in [0, 1] after warmup.
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda p: 1.0,
    "linear": lambda p: 1.0 - p,
    "cosine": lambda p: 0.5 + 0.5 * math.cos(math.pi * p),
}


def learning_rate(peak: float, shape: str, warmup: int, steps: int, step: int) -> float:
    """The rate of optimizer step `step` (0-based), whatever the number of processes."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * SHAPES[shape]((step - warmup) / max(1, steps - warmup))


def adamw(groups: Sequence[Group], betas: tuple[float, float]) -> torch.optim.AdamW:
    """Fused: one kernel a step, and it takes `found_inf`, which drops an update on the device without a look from the host."""
    rows = [
        {"params": list(g.parameters.values()), "lr": g.lr, "weight_decay": g.weight_decay, "peak": g.lr, "until": g.until} for g in groups
    ]
    return torch.optim.AdamW(rows, betas=betas, fused=True)


def guard(optimizer: torch.optim.Optimizer, gradient_norm: Tensor) -> Tensor:
    """Makes the next step of a fused optimizer do nothing when the norm is not finite; returns that flag, 0. or 1."""
    bad = (~torch.isfinite(gradient_norm)).float()
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    return bad


def set_rate(optimizer: torch.optim.Optimizer, share: float, progress: float) -> None:
    """Every group's rate as a share of its peak. One whose part of the run is over loses its gradient: it does not move, and has no
    share in the norm that the others are clipped by."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
        if over(group, progress):
            for parameter in group["params"]:
                parameter.grad = None


def over(group: dict[str, Any], progress: float) -> bool:
    """Whether a group trains no longer at a share of the steps."""
    return bool(progress >= group["until"])


def state(optimizer: torch.optim.Optimizer, names: list[str]) -> State:
    """Flat `name/exp_avg`, `name/exp_avg_sq`, `name/step` tensors, in the order the parameters were given."""
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    return {f"{n}/{k}": v for n, p in zip(names, parameters, strict=True) for k, v in optimizer.state[p].items()}


def restore(optimizer: torch.optim.Optimizer, names: list[str], saved: State) -> None:
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for name, p in zip(names, parameters, strict=True):
        prefix = f"{name}/"
        entries: dict[str, Any] = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
        optimizer.state[p] = {k: v.to(p.device, torch.float32) for k, v in entries.items()}


@torch.no_grad()
def ema_update(shadow: list[Tensor], parameters: list[Tensor], decay: float, step: int) -> None:
    """shadow <- d shadow + (1 - d) parameters, with the ramp d = min(decay, (1 + step) / (10 + step))."""
    torch._foreach_lerp_(shadow, [p.detach() for p in parameters], 1 - min(decay, (1 + step) / (10 + step)))
