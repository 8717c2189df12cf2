"""Denoising score matching on a discrete noise schedule (Ho et al. 2020, arXiv:2006.11239)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.objectives.errors import Error, l2
from finetune.objectives.noise import PLAIN, Noise
from finetune.objectives.objective import Denoising, Noised
from finetune.objectives.timesteps import At, Density, Levels, drawn, uniform
from finetune.objectives.weights import Weight, reparametrised
from finetune.objectives.weights import uniform as every_alike


@dataclass(frozen=True)
class Schedule:
    """A model's own training noise: `alphas_cumprod` [T] in [0, 1], and what its network predicts."""

    alphas_cumprod: Tensor
    prediction_type: str  # epsilon | v_prediction | sample

    def to(self, device: torch.device) -> "Schedule":
        """The same on a device, so that a step copies nothing."""
        return Schedule(self.alphas_cumprod.to(device), self.prediction_type)

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod)

    def timestep(self, level: float) -> Tensor:
        """[1] int64: the timestep at a level of noise in [0, 1)."""
        return torch.tensor([int(level * self.steps)])

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t), each [B, 1, 1, 1] with the dtype and on the device of `like`."""
        a = self.alphas_cumprod.to(like.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))
        return a.sqrt(), (1 - a).sqrt()

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio a_t / (1 - a_t), [B]."""
        a = self.alphas_cumprod.to(t.device)[t].float()
        return a / (1 - a)


def add_noise(schedule: Schedule, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, equation 4."""
    signal, sigma = schedule.coefficients(t, x_0)
    return signal * x_0 + sigma * noise


def epsilon(schedule: Schedule, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    return noise


def velocity(schedule: Schedule, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """v = sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans and Ho 2022, arXiv:2202.00512, appendix D)."""
    signal, sigma = schedule.coefficients(t, x_0)
    return signal * noise - sigma * x_0


def sample(schedule: Schedule, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    return x_0


TARGETS = {"epsilon": epsilon, "v_prediction": velocity, "sample": sample}


@dataclass(frozen=True)
class Diffusion(Denoising):
    """Weighted error of the model's own prediction type."""

    schedule: Schedule
    weight: Weight = every_alike
    density: Density = uniform
    error: Error = l2
    low: float = 0.0  # the levels of the density are brought into [low, high)
    high: float = 1.0
    levels: Levels = drawn
    noise: Noise = PLAIN

    def at(self, level: float) -> "Diffusion":
        return replace(self, weight=every_alike, error=l2, levels=At(level), noise=PLAIN)

    def timesteps(self, u: Tensor, shape: torch.Size) -> Tensor:
        """[B] uniform in [0, 1), fp64 -> t [B] int64 in [0, T), whatever the pictures' shape [B, C, H, W]."""
        level = self.low + (self.high - self.low) * self.density(u)
        return (level * self.schedule.steps).long().clamp(0, self.schedule.steps - 1)

    def mixed(self, x_0: Tensor, noise: Tensor, t: Tensor, added: Tensor | None = None) -> Noised:
        """`x_0` [B, C, H, W] at `t` [B] int64 in [0, T); `added` is the noise that is mixed in where it is not the `noise` to predict."""
        x_t = add_noise(self.schedule, x_0, noise if added is None else added, t)
        return Noised(x_t, t, TARGETS[self.schedule.prediction_type](self.schedule, x_0, noise, t))

    def cost(self, answer: Tensor, noised: Noised) -> Tensor:
        """Elementwise weighted error of an answer, [B, C, H, W] in the target's dtype (fp32 in training)."""
        target, t = noised.target, noised.t
        difference, shape = answer.to(target.dtype) - target, (-1, *[1] * (target.ndim - 1))
        signal, sigma = self.schedule.coefficients(t, target)
        error = self.error(difference, (t / self.schedule.steps).to(target.dtype).view(shape), sigma / signal)
        weight = reparametrised(self.weight, self.schedule.snr(t), self.schedule.prediction_type)
        return error * weight.to(target.dtype).view(shape)
