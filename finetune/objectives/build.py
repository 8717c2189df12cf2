"""The objective that a base's own training noise and the settings ask for."""

from collections.abc import Callable

from finetune.config.objective import Objective as Settings
from finetune.errors import ConfigError
from finetune.objectives import timesteps
from finetune.objectives.diffusion import Diffusion, Schedule
from finetune.objectives.errors import ERRORS
from finetune.objectives.flow import Flow, FlowMatching
from finetune.objectives.noise import Noise
from finetune.objectives.objective import Denoising, Objective
from finetune.objectives.preserve import Preserving
from finetune.objectives.reconstruction import Reconstruction
from finetune.objectives.timesteps import Density, Levels, LogitNormal, Mode, cosmap
from finetune.objectives.weights import WEIGHTS

DENSITIES: dict[str, Callable[[Settings], Density]] = {
    "uniform": lambda s: timesteps.uniform,
    "logit-normal": lambda s: LogitNormal(s.density_mean, s.density_deviation),
    "mode": lambda s: Mode(s.density_scale),
    "cosmap": lambda s: cosmap,
}


def asked(kind: str) -> frozenset[str]:
    """The networks that the objective of what trains (`method.kind`) asks: see `Objective.networks`."""
    return (Reconstruction if kind == "decoder" else Denoising).networks


def objective(schedule: Schedule | Flow, settings: Settings, trigger: str | None = None, kind: str = "") -> Objective:
    """The objective of what trains (`method.kind`) in a base with these settings; `trigger` is the word for what is learned.

    Raises:
        ConfigError: a setting that means nothing for this kind of base.
    """
    if kind == "decoder":
        return Reconstruction()
    denoising: Denoising = _flow(schedule, settings) if isinstance(schedule, Flow) else _diffusion(schedule, settings)
    if settings.preserve is None:
        return denoising
    if trigger is None:
        raise ConfigError("objective.preserve: there is no trigger that it could stand in the place of", "give --trigger")
    return Preserving(denoising, settings.preserve_weight, settings.preserve, trigger)


def _levels(s: Settings) -> Levels:
    return timesteps.stratified if s.stratified else timesteps.drawn


def _noise(s: Settings) -> Noise:
    return Noise(s.noise_offset, s.pyramid_levels, s.pyramid_discount, s.input_perturbation)


def _flow(schedule: Flow, s: Settings) -> FlowMatching:
    if s.weighting != "uniform":
        raise ConfigError(f"objective.weighting {s.weighting}: this base learns by flow matching, which has no such weight", "leave it out")
    if s.zero_terminal_snr:
        raise ConfigError("objective.zero_terminal_snr: flow matching ends in pure noise as it is", "leave it out")
    if s.resolution_shift and schedule.by_resolution is None:
        raise ConfigError("objective.resolution_shift: this base is sampled with one shift for all sizes", "leave it out")
    how = schedule.by_resolution if s.resolution_shift else None
    density = DENSITIES[s.density or "logit-normal"](s)
    return FlowMatching(schedule, density, ERRORS[s.loss](s.huber_c, s.huber_schedule), how, s.t_min, s.t_max, _levels(s), _noise(s))


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
    return Diffusion(schedule, weight, density, ERRORS[s.loss](s.huber_c, s.huber_schedule), s.t_min, s.t_max, _levels(s), _noise(s))
