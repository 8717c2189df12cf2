"""What a difference between prediction and target costs, elementwise."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# difference [B, C, H, W]; progress from clean to noise in [0, 1], and sigma / signal, both [B, 1, 1, 1] -> cost
Error = Callable[[Tensor, Tensor, Tensor], Tensor]


def l2(difference: Tensor, progress: Tensor, ratio: Tensor) -> Tensor:
    return difference.square()


def l1(difference: Tensor, progress: Tensor, ratio: Tensor) -> Tensor:
    return difference.abs()


def constant(c: float, progress: Tensor, ratio: Tensor) -> Tensor:
    return torch.full_like(progress, c)


def exponential(c: float, progress: Tensor, ratio: Tensor) -> Tensor:
    """c^progress: the plain squared error where there is little noise, and robust where there is much."""
    return torch.exp(progress * math.log(c))


def snr(c: float, progress: Tensor, ratio: Tensor) -> Tensor:
    """(1 - c) / (1 + sigma / signal)^2 + c."""
    return (1 - c) / (1 + ratio).square() + c


SCHEDULES = {"constant": constant, "exponential": exponential, "snr": snr}


@dataclass(frozen=True)
class PseudoHuber:
    """scale (sqrt(difference^2 + c^2) - c), with c a function of the noise (Khrapov et al. 2024, arXiv:2403.16728, equation 10).

    The scale 2 c makes it the squared error for small differences (`huber`), and 2 the absolute one, doubled, for large (`smooth-l1`).
    """

    c: float
    schedule: str
    smooth: bool = False

    def __call__(self, difference: Tensor, progress: Tensor, ratio: Tensor) -> Tensor:
        c = SCHEDULES[self.schedule](self.c, progress, ratio)
        return 2 * (1 if self.smooth else c) * ((difference.square() + c.square()).sqrt() - c)


ERRORS: dict[str, Callable[[float, str], Error]] = {
    "l2": lambda c, schedule: l2,
    "l1": lambda c, schedule: l1,
    "huber": lambda c, schedule: PseudoHuber(c, schedule),
    "smooth-l1": lambda c, schedule: PseudoHuber(c, schedule, smooth=True),
}
