"""What every objective answers, and which one a base's own training noise and the settings ask for."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from finetune.config.objective import Objective as Settings
from finetune.errors import ConfigError
from finetune.objectives import timesteps
from finetune.objectives.diffusion import Diffusion, Schedule
from finetune.objectives.errors import ERRORS
from finetune.objectives.flow import Flow, FlowMatching
from finetune.objectives.noise import Shaping
from finetune.objectives.preserve import Preserving
from finetune.objectives.timesteps import Density, LogitNormal, Mode, cosmap
from finetune.objectives.weights import WEIGHTS


class Objective(Protocol):
    @property
    def schedule(self) -> Any: ...
    def timesteps(self, u: Tensor, shape: torch.Size) -> Tensor: ...
    def unweighted(self) -> "Objective": ...
    def __call__(
        self, predict: Callable[[Tensor, Tensor], Tensor], x_0: Tensor, noise: Tensor, t: Tensor, added: Tensor | None = None
    ) -> Tensor: ...


DENSITIES: dict[str, Callable[[Settings], Density]] = {
    "uniform": lambda s: timesteps.uniform,
    "logit-normal": lambda s: LogitNormal(s.density_mean, s.density_deviation),
    "mode": lambda s: Mode(s.density_scale),
    "cosmap": lambda s: cosmap,
}


def objective(schedule: Schedule | Flow, settings: Settings) -> Objective:
    """The objective of a base with these settings.

    Raises:
        ConfigError: a setting that means nothing for this kind of base.
    """
    made: Objective = _flow(schedule, settings) if isinstance(schedule, Flow) else _diffusion(schedule, settings)
    return made if settings.preserve is None else Preserving(made, settings.preserve_weight)


def shaping(settings: Settings) -> Shaping:
    """How the noise is shaped."""
    return Shaping(settings.noise_offset, settings.pyramid_levels, settings.pyramid_discount, settings.input_perturbation)


def _flow(schedule: Flow, s: Settings) -> FlowMatching:
    if s.weighting != "uniform":
        raise ConfigError(f"objective.weighting {s.weighting}: this base learns by flow matching, which has no such weight", "leave it out")
    if s.zero_terminal_snr:
        raise ConfigError("objective.zero_terminal_snr: flow matching ends in pure noise as it is", "leave it out")
    if s.resolution_shift and schedule.by_resolution is None:
        raise ConfigError("objective.resolution_shift: this base is sampled with one shift for all sizes", "leave it out")
    how = schedule.by_resolution if s.resolution_shift else None
    density = DENSITIES[s.density or "logit-normal"](s)
    return FlowMatching(schedule, density, ERRORS[s.loss](s.huber_c, s.huber_schedule), how, s.t_min, s.t_max)


def _diffusion(schedule: Schedule, s: Settings) -> Diffusion:
    if s.resolution_shift:
        raise ConfigError("objective.resolution_shift: is for flow matching, and this base has a discrete schedule", "leave it out")
    if s.zero_terminal_snr and schedule.prediction_type == "epsilon":
        raise ConfigError(
            "objective.zero_terminal_snr: this base predicts epsilon, which says nothing of a picture where there is only noise",
            "it takes a base that predicts v, such as sd21",
        )
    weight = WEIGHTS[s.weighting](*([] if s.gamma is None else [s.gamma]))
    density = DENSITIES[s.density or "uniform"](s)
    return Diffusion(schedule, weight, density, ERRORS[s.loss](s.huber_c, s.huber_schedule), s.t_min, s.t_max)


def per_picture(error: Tensor, masks: Tensor | None) -> Tensor:
    """[B]: the mean of each picture's error [B, C, H, W]; with masks [B, 1, H, W], over the area that they leave."""
    if masks is None:
        return error.flatten(1).mean(1)
    return (error * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) * error.shape[1])
