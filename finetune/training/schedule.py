"""The learning rate as a function of the step."""

import math
from collections.abc import Callable

from finetune.config.optim import Optim


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
