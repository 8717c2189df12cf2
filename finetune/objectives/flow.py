"""Flow matching on the straight line from picture to noise (Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2022, arXiv:2209.03003)."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.objectives.errors import Error, l2
from finetune.objectives.noise import PLAIN, Noise
from finetune.objectives.objective import Denoising, Noised
from finetune.objectives.timesteps import At, Density, Levels, LogitNormal, drawn


@dataclass(frozen=True)
class ByResolution:
    """The shift of a picture of so many latents: e^(a n + b) through two points of n tokens, as the base is sampled."""

    few: int
    many: int
    least: float
    most: float
    patch: int = 2  # latents a token, along a side

    def __call__(self, shape: torch.Size) -> float:
        tokens = shape[-2] * shape[-1] / self.patch**2
        return math.exp(self.least + (self.most - self.least) * (tokens - self.few) / (self.many - self.few))


@dataclass(frozen=True)
class Flow:
    """A model's own training noise: sigma in [0, 1], moved towards noise by `shift` (1: not at all); and how it moves in sampling."""

    shift: float = 1.0
    by_resolution: ByResolution | None = None
    prediction_type = "flow"

    def to(self, device: torch.device) -> "Flow":
        return self

    def timestep(self, level: float) -> Tensor:
        """[1] fp32: sigma itself is the level of noise in [0, 1]."""
        return torch.tensor([level])


@dataclass(frozen=True)
class FlowMatching(Denoising):
    """Error of the velocity noise - x_0."""

    schedule: Flow
    density: Density = LogitNormal()  # noqa: RUF009  frozen
    error: Error = l2
    by_resolution: ByResolution | None = None
    low: float = 0.0  # the levels are brought into [low, high), after the shift
    high: float = 1.0
    levels: Levels = drawn
    noise: Noise = PLAIN

    def at(self, level: float) -> "FlowMatching":
        return replace(self, error=l2, levels=At(level), noise=PLAIN)

    def timesteps(self, u: Tensor, shape: torch.Size) -> Tensor:
        """[B] uniform in [0, 1), fp64 -> sigma [B] in [0, 1), fp32; the shift is that of Esser et al., equation 23.

        `shape` is that of the pictures [B, C, H, W], where the shift depends on it.
        """
        s = self.by_resolution(shape) if self.by_resolution else self.schedule.shift
        sigma = self.density(u)
        return (self.low + (self.high - self.low) * s * sigma / (1 + (s - 1) * sigma)).float()

    def mixed(self, x_0: Tensor, noise: Tensor, t: Tensor, added: Tensor | None = None) -> Noised:
        """`x_0` [B, C, H, W] at sigma `t` [B]; `added` is the noise that is mixed in where it is not the `noise` to predict."""
        sigma = t.to(x_0.dtype).view(-1, *[1] * (x_0.ndim - 1))
        x_t = (1 - sigma) * x_0 + sigma * (noise if added is None else added)
        return Noised(x_t, t, noise - x_0)

    def cost(self, answer: Tensor, noised: Noised) -> Tensor:
        """Elementwise error of an answer, shaped as the target [B, C, H, W] and in its dtype."""
        target = noised.target
        sigma = noised.t.to(target.dtype).view(-1, *[1] * (target.ndim - 1))
        return self.error(answer.to(target.dtype) - target, sigma, sigma / (1 - sigma))
