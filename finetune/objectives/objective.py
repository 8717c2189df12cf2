"""What every objective answers, and which one a base's own training noise asks for."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from finetune.config.job import Objective as Settings
from finetune.errors import ConfigError
from finetune.objectives.diffusion import Diffusion, MinSNR, Schedule, uniform_weight
from finetune.objectives.flow import DENSITIES, Flow, FlowMatching


class Objective(Protocol):
    @property
    def schedule(self) -> Any: ...
    def timesteps(self, u: Tensor) -> Tensor: ...
    def unweighted(self) -> "Objective": ...
    def __call__(self, predict: Callable[[Tensor, Tensor], Tensor], x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...


def objective(schedule: Schedule | Flow, settings: Settings) -> Objective:
    """The objective of a base with these settings.

    Raises:
        ConfigError: a setting that means nothing for this kind of base.
    """
    if isinstance(schedule, Flow):
        if settings.min_snr_gamma:
            raise ConfigError("objective.min_snr_gamma: this base learns by flow matching, which has no such weighting", "leave it out")
        return FlowMatching(schedule, DENSITIES[settings.density or "logit-normal"])
    if settings.density == "logit-normal":
        raise ConfigError(f"objective.density {settings.density}: this base draws its timesteps uniformly", "leave it out")
    return Diffusion(schedule, MinSNR(settings.min_snr_gamma) if settings.min_snr_gamma else uniform_weight)


def per_picture(error: Tensor, masks: Tensor | None) -> Tensor:
    """[B]: the mean of each picture's error [B, C, H, W]; with masks [B, 1, H, W], over the area that they leave."""
    if masks is None:
        return error.flatten(1).mean(1)
    return (error * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) * error.shape[1])
