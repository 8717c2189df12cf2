"""Flow matching on the straight line from picture to noise (Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2022, arXiv:2209.03003)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.objectives.errors import Error, l2
from finetune.objectives.timesteps import Density, LogitNormal

Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Flow:
    """A model's own training noise: sigma in [0, 1], moved towards noise by `shift` (1: not at all)."""

    shift: float = 1.0
    prediction_type = "flow"

    def to(self, device: torch.device) -> "Flow":
        return self


@dataclass(frozen=True)
class ByResolution:
    """The shift of a picture of so many latents: e^(a n + b) through two points of n tokens, as FLUX.1 is sampled (0.5 at 256, 1.15
    at 4096: its scheduler's config)."""

    few: int = 256
    many: int = 4096
    least: float = 0.5
    most: float = 1.15
    patch: int = 2  # latents a token, along a side

    def __call__(self, shape: torch.Size) -> float:
        tokens = shape[-2] * shape[-1] / self.patch**2
        return math.exp(self.least + (self.most - self.least) * (tokens - self.few) / (self.many - self.few))


@dataclass(frozen=True)
class FlowMatching:
    """Error of the velocity noise - x_0."""

    schedule: Flow
    density: Density = LogitNormal()  # noqa: RUF009  frozen
    error: Error = l2
    by_resolution: ByResolution | None = None

    def timesteps(self, u: Tensor, shape: torch.Size | None = None) -> Tensor:
        """[B] uniform in [0, 1), fp64 -> sigma [B] in [0, 1), fp32; the shift is that of Esser et al., equation 23.

        `shape` is that of the pictures [B, C, H, W], where the shift depends on it.
        """
        s = self.by_resolution(shape) if self.by_resolution and shape is not None else self.schedule.shift
        sigma = self.density(u)
        return (s * sigma / (1 + (s - 1) * sigma)).float()

    def unweighted(self) -> "FlowMatching":
        return FlowMatching(self.schedule, self.density, by_resolution=self.by_resolution)

    def __call__(self, predict: Predict, x_0: Tensor, noise: Tensor, t: Tensor, added: Tensor | None = None) -> Tensor:
        """Elementwise error, shaped as `x_0` [B, C, H, W] and in its dtype; `t` is sigma [B] in [0, 1]."""
        sigma = t.to(x_0.dtype).view(-1, *[1] * (x_0.ndim - 1))
        x_t = (1 - sigma) * x_0 + sigma * (noise if added is None else added)
        difference = predict(x_t, t).to(x_0.dtype) - (noise - x_0)
        return self.error(difference, sigma, sigma / (1 - sigma))
