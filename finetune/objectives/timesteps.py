"""How often each noise level is drawn: from u, uniform in [0, 1), to a level in [0, 1), where 0 is the clean picture."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.draws import Draws

Density = Callable[[Tensor], Tensor]


def uniform(u: Tensor) -> Tensor:
    return u


@dataclass(frozen=True)
class LogitNormal:
    """sigmoid of a normal: the middle is drawn most (Esser et al. 2024, arXiv:2403.03206, section 3.1)."""

    mean: float = 0.0
    deviation: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.deviation * torch.special.ndtri(u))


@dataclass(frozen=True)
class Mode:
    """1 - u - s (cos^2(pi u / 2) - 1 + u): a positive s draws the middle more, a negative one the ends (the same, equation 20)."""

    scale: float = 1.29

    def __call__(self, u: Tensor) -> Tensor:
        return (1 - u - self.scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)).clamp(max=1 - 1e-7)


def cosmap(u: Tensor) -> Tensor:
    """1 - 1 / (tan(pi u / 2) + 1): the noise of a cosine schedule (the same, equation 21)."""
    return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)


# How the levels of a batch are spread: [B] uniform in [0, 1), fp64, before the density.
Levels = Callable[[Draws], Tensor]


def drawn(draws: Draws) -> Tensor:
    """Each alone."""
    return draws.uniform("timestep")


def stratified(draws: Draws) -> Tensor:
    """Each slot's own part of [0, 1), in an order that is drawn for each step.

    The levels of a global batch are then spread evenly, whatever process a slot is in; each alone is as uniform as before.
    """
    u = draws.uniform("timestep")
    places, total = draws.strata("stratum")
    return (places.to(u.dtype) + u) / total


@dataclass(frozen=True)
class At:
    """All at one level, for measuring."""

    level: float

    def __call__(self, draws: Draws) -> Tensor:
        return torch.full((draws.count,), self.level, dtype=torch.float64)
