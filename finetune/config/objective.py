"""What is learned: how much each timestep and error counts, which noise is drawn, and what is kept."""

from typing import Annotated, Literal

from pydantic import Field

from finetune.config.section import Section


class Objective(Section):
    weighting: Literal["uniform", "min-snr", "soft-min-snr", "debiased", "p2"] = Field(
        "uniform", description="how much each timestep counts, by its signal-to-noise ratio"
    )
    gamma: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="gamma of the weighting (5 for min-snr and soft-min-snr, 1 for p2)"
    )
    loss: Literal["l2", "l1", "huber", "smooth-l1"] = Field("l2", description="what an error costs")
    huber_c: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="where huber and smooth-l1 turn from square to absolute")
    huber_schedule: Literal["constant", "exponential", "snr"] = Field(
        "snr", description="how that point moves with the noise: from 1 where there is none to huber_c, or not at all"
    )
    density: Literal["uniform", "logit-normal", "mode", "cosmap"] | None = Field(
        None, description="how often each noise level is drawn (logit-normal for flow matching, else uniform)"
    )
    density_mean: Annotated[float, Field(allow_inf_nan=False)] = Field(0.0, description="of logit-normal; below 0 is towards the picture")
    density_deviation: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(1.0, description="of logit-normal")
    density_scale: Annotated[float, Field(ge=-1, le=1.75)] = Field(1.29, description="of mode; above 0 draws the middle more")
    t_min: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="lowest noise level, as a share of all, after any shift")
    t_max: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="highest noise level, as a share of all, after any shift")
    stratified: bool = Field(False, description="spread the noise levels of a step evenly over its pictures: less variance")
    resolution_shift: bool = Field(False, description="flow matching: more noise for larger pictures, as in FLUX.1's sampling")
    zero_terminal_snr: bool = Field(
        False, description="pure noise at the last timestep (Lin et al. 2023, arXiv:2305.08891), for bases that predict v"
    )
    noise_offset: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="random constant in each channel's noise, usually 0.05")
    pyramid_levels: Annotated[int, Field(ge=0, le=10)] = Field(0, description="coarser grids of noise that are added")
    pyramid_discount: Annotated[float, Field(gt=0, le=1)] = Field(0.8, description="of each coarser grid against the one before")
    input_perturbation: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="noise that the network sees beyond what it is to predict, usually 0.1"
    )
    preserve: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="what the trigger stands for, such as dog: captions that say it instead keep the base's own answer"
    )
    preserve_weight: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = Field(1.0, description="weight of that part of the loss")

    def contradictions(self) -> list[tuple[bool, str]]:
        fields = type(self).model_fields
        given = {name for name in fields if getattr(self, name) != fields[name].default}

        def without(name: str, needs: str, present: bool) -> tuple[bool, str]:
            return name in given and not present, f"objective.{name}: is for {needs}"

        return [
            without("gamma", "objective.weighting min-snr, soft-min-snr or p2", self.weighting in ("min-snr", "soft-min-snr", "p2")),
            without("huber_c", "objective.loss huber or smooth-l1", self.loss in ("huber", "smooth-l1")),
            without("huber_schedule", "objective.loss huber or smooth-l1", self.loss in ("huber", "smooth-l1")),
            without("density_mean", "objective.density logit-normal", self.density == "logit-normal"),
            without("density_deviation", "objective.density logit-normal", self.density == "logit-normal"),
            without("density_scale", "objective.density mode", self.density == "mode"),
            without("pyramid_discount", "objective.pyramid_levels", self.pyramid_levels > 0),
            without("preserve_weight", "objective.preserve", self.preserve is not None),
            (self.t_min >= self.t_max, f"objective.t_min {self.t_min}: must be below objective.t_max {self.t_max}"),
        ]
