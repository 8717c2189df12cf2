"""The learning rate as a function of the step, an update that a non-finite gradient cannot pass, and state that can be kept."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.config.optim import Optim
from finetune.methods.method import Group
from finetune.training.checkpoint import State


def _restarts(p: float, o: Optim) -> float:
    """Cosine, `cycles` times over."""
    return 0.5 + 0.5 * math.cos(math.pi * (p * o.cycles % 1.0)) if p < 1 else 0.0


def _stable(p: float, o: Optim) -> float:
    """Warmup, stable, decay (Hu et al. 2024, arXiv:2404.06395): constant, and in the last share of the steps down to 0."""
    return min(1.0, (1 - p) / o.decay)


# Multipliers of the peak rate, as functions of progress in [0, 1] after warmup.
SHAPES: dict[str, Callable[[float, Optim], float]] = {
    "constant": lambda p, o: 1.0,
    "linear": lambda p, o: 1.0 - p,
    "cosine": lambda p, o: 0.5 + 0.5 * math.cos(math.pi * p),
    "cosine-restarts": _restarts,
    "polynomial": lambda p, o: (1.0 - p) ** o.power,
    "wsd": _stable,
}


def learning_rate(o: Optim, step: int) -> float:
    """The rate of optimizer step `step` (0-based) as a share of its peak, whatever the number of processes."""
    if step < o.warmup:
        return (step + 1) / o.warmup
    return SHAPES[o.schedule]((step - o.warmup) / max(1, o.steps - o.warmup), o)


def rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """What trains as an optimizer takes it."""
    return [
        {"params": list(g.parameters.values()), "lr": g.lr, "weight_decay": g.weight_decay, "peak": g.lr, "until": g.until} for g in groups
    ]


def guard(optimizer: torch.optim.Optimizer, gradient_norm: Tensor) -> Tensor:
    """Keeps a norm that is not finite from the weights; returns that flag, 0. or 1.

    A fused step does nothing then. Others take a gradient of 0: their momentum may move the weights, which stay finite.
    """
    bad = (~torch.isfinite(gradient_norm)).float()
    if optimizer.defaults.get("fused") or hasattr(optimizer, "found_inf"):
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        return bad
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.copy_(torch.where(bad > 0, torch.zeros_like(p.grad), p.grad))
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
    """Flat `name/exp_avg`, `name/step` tensors, in the order the parameters were given; and numbers, those of groups as `group 0/d`."""
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    held = {f"{n}/{k}": v for n, p in zip(names, parameters, strict=True) for k, v in optimizer.state[p].items()}
    for i, group in enumerate(optimizer.param_groups):
        held |= {f"group {i}/{k}": v for k, v in group.items() if k not in OURS and isinstance(v, bool | int | float | Tensor)}
    return {k: _kept(v) for k, v in held.items() if isinstance(v, bool | int | float | Tensor)}


OURS = {"lr", "peak", "until", "params"}  # of a group: set before every step, or by the job
NUMBERS = {torch.int64: int, torch.float64: float, torch.bool: bool}


def _kept(value: Any) -> Tensor:
    """Numbers become tensors of the widest types, which nothing else here is of."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def restore(optimizer: torch.optim.Optimizer, names: list[str], saved: State) -> None:
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for name, p in zip(names, parameters, strict=True):
        optimizer.state[p] = _entries(saved, f"{name}/", p.device)
    for i, group in enumerate(optimizer.param_groups):
        group |= _entries(saved, f"group {i}/", torch.device("cpu"))


def _entries(saved: State, prefix: str, device: torch.device) -> dict[str, Any]:
    found = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
    return {k: NUMBERS[v.dtype](v) if v.ndim == 0 and v.dtype in NUMBERS else v.to(device) for k, v in found.items()}


@torch.no_grad()
def ema_update(shadow: list[Tensor], parameters: list[Tensor], decay: float, step: int) -> None:
    """shadow <- d shadow + (1 - d) parameters, with the ramp d = min(decay, (1 + step) / (10 + step))."""
    torch._foreach_lerp_(shadow, [p.detach().float() for p in parameters], 1 - min(decay, (1 + step) / (10 + step)))
