"""The optimizers: what each needs, keeps and asks for. Torch-free; training/optimizer.py makes them."""

from collections.abc import Collection
from dataclasses import dataclass

from finetune import libraries
from finetune.errors import ConfigError


@dataclass(frozen=True)
class Optimizer:
    """`package` is what has to be installed for it, by the name that it is imported with."""

    package: str | None = None
    install: str = ""
    cuda: bool = False  # whether it runs on NVIDIA's devices alone
    size: int = 16  # bytes a parameter: fp32 master, gradient and what it keeps
    averages: bool = False  # whether its weights have to be averaged before they are used, which it does itself
    one_rate: bool = False  # whether it finds one rate, for all that trains
    rate: float = 1.0  # usual learning rate, as a multiple of AdamW's


OPTIMIZERS = {
    "adamw": Optimizer(),
    "adamw8bit": Optimizer("bitsandbytes", libraries.install("bitsandbytes"), size=10),
    "paged-adamw8bit": Optimizer("bitsandbytes", libraries.install("bitsandbytes"), cuda=True, size=10),
    "adafactor": Optimizer(size=9),
    # Its steps are all of one size (Chen et al. 2023, arXiv:2302.06675: 3 to 10 times less than AdamW's).
    "lion": Optimizer("lion_pytorch", libraries.install("optimizers"), size=12, rate=0.2),
    "prodigy": Optimizer("prodigyopt", libraries.install("optimizers"), size=24, one_rate=True),
    "schedule-free": Optimizer("schedulefree", libraries.install("optimizers"), averages=True),
}


def check_device_runs(name: str, device: str) -> None:
    """Raises:
    ConfigError: the optimizer's package is not installed, or it does not run on a device of this type.
    """
    row = OPTIMIZERS[name]
    if row.package and not libraries.installed(row.package):
        raise ConfigError(f"--optimizer {name}: needs the package {row.package.replace('_', '-')}", row.install)
    if row.cuda and device != "cuda":
        raise ConfigError(f"--optimizer {name}: needs an NVIDIA device, and this run is on {device}", "--optimizer adamw8bit")


def check_rates(name: str, rates: Collection[float]) -> None:
    """Raises:
    ConfigError: the optimizer finds one rate for all, and several are given.
    """
    if OPTIMIZERS[name].one_rate and len(set(rates)) > 1:
        given = ", ".join(f"{rate:g}" for rate in rates)
        raise ConfigError(
            f"--optimizer {name}: finds one rate for all that trains, and rates of {given} are given",
            "leave text_encoder_lr, lr_pattern and lora_plus out, or choose adamw",
        )
