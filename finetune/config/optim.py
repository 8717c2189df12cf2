"""How it is learned: optimizer, rates, schedule, averages."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from finetune.config.optimizers import OPTIMIZERS
from finetune.config.section import Positive, Rate, Section

if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[tuple(OPTIMIZERS)]


class Optim(Section):
    steps: Annotated[int, Field(ge=1)] = Field(500, description="optimizer steps")
    batch: Positive = Field(4, description="pictures per process and micro-batch")
    accumulate: Positive = Field(1, description="micro-batches per optimizer step")
    lr: Rate = Field(2e-4, description="peak learning rate (by what trains, the base and the optimizer: `--dry-run` shows it)")
    optimizer: Name = Field("adamw", description="optimizer")
    masters: Literal["fp32", "bf16"] = Field(
        "fp32", description="number format of weights that train; bf16, with stochastic rounding, is for all weights with adamw"
    )
    schedule: Literal["constant", "linear", "cosine", "cosine-restarts", "polynomial", "wsd"] = Field(
        "constant", description="shape of the learning rate after warmup"
    )
    cycles: Annotated[int, Field(ge=1)] = Field(2, description="of cosine-restarts")
    power: Annotated[float, Field(gt=0, le=10)] = Field(2.0, description="of polynomial")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="share of the steps in which wsd goes down to 0")
    warmup: Annotated[int, Field(ge=0)] = Field(0, description="optimizer steps of linear warmup")
    lr_pattern: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        {}, description="factors on the rate of parameters, by regular expressions that are searched in their names"
    )
    lora_plus: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = Field(
        1.0, description="rate of LoRA's up matrices as a multiple of the others', LoRA+ (Hayou et al. 2024, arXiv:2402.12354)"
    )
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.01, description="decoupled weight decay")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="moment decays (0.9 and 0.99 for lion)"
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="gradients are clipped to this norm, once a step")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay of averaged weights, which are then what is written (off)"
    )
    ema_posthoc: bool = Field(
        False, description="keep averages from which `ft adapter average` makes one of any length after the run, at each checkpoint"
    )

    @property
    def one_rate(self) -> bool:
        """Whether the optimizer finds one rate for all that trains."""
        return OPTIMIZERS[self.optimizer].one_rate
