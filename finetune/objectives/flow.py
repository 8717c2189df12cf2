"""Flow matching on the straight line from picture to noise (Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2022, arXiv:2209.03003)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
Density = Callable[[Tensor], Tensor]  # u uniform in [0, 1) -> sigma in [0, 1)


@dataclass(frozen=True)
class Flow:
    """A model's own training noise: sigma in [0, 1], moved towards noise by `shift` (1: not at all)."""

    shift: float = 1.0
    prediction_type = "flow"

    def to(self, device: torch.device) -> "Flow":
        return self


def uniform(u: Tensor) -> Tensor:
    return u


def logit_normal(u: Tensor) -> Tensor:
    """sigmoid of a standard normal: the middle of the line is seen most (Esser et al. 2024, arXiv:2403.03206, section 3.1)."""
    return torch.sigmoid(torch.special.ndtri(u))


DENSITIES: dict[str, Density] = {"uniform": uniform, "logit-normal": logit_normal}


@dataclass(frozen=True)
class FlowMatching:
    """Squared error of the velocity noise - x_0."""

    schedule: Flow
    density: Density = logit_normal

    def timesteps(self, u: Tensor) -> Tensor:
        """[B] uniform in [0, 1), fp64 -> sigma [B] in [0, 1), fp32; the shift is that of Esser et al., equation 23."""
        sigma, s = self.density(u), self.schedule.shift
        return (s * sigma / (1 + (s - 1) * sigma)).float()

    def unweighted(self) -> "FlowMatching":
        return self

    def __call__(self, predict: Predict, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Elementwise error, shaped as `x_0` [B, C, H, W] and in its dtype; `t` is sigma [B] in [0, 1]."""
        sigma = t.to(x_0.dtype).view(-1, *[1] * (x_0.ndim - 1))
        x_t = (1 - sigma) * x_0 + sigma * noise
        return (predict(x_t, t).to(x_0.dtype) - (noise - x_0)).square()
