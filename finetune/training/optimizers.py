"""The optimizers, each of its own library: one table, no path to any other class."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from finetune import libraries
from finetune.config.optim import Optim
from finetune.data import keys
from finetune.errors import ConfigError

Rows = list[dict[str, Any]]  # parameter groups


@dataclass(frozen=True)
class Entry:
    """An optimizer. `package` is what has to be installed for it, by the name that it is imported with."""

    make: Callable[[Rows, Optim], torch.optim.Optimizer]
    package: str | None = None
    install: str = ""
    cuda: bool = False  # whether it runs on NVIDIA's devices alone
    size: int = 16  # bytes a parameter: fp32 master, gradient and what it keeps
    averages: bool = False  # whether its weights have to be averaged before they are used, which it does itself


def _adamw(rows: Rows, o: Optim) -> torch.optim.Optimizer:
    """Fused: one kernel a step, and it takes `found_inf`, which drops an update on the device without a look from the host."""
    return torch.optim.AdamW(rows, betas=o.betas, fused=True)


def _bitsandbytes(name: str) -> Callable[[Rows, Optim], torch.optim.Optimizer]:
    def make(rows: Rows, o: Optim) -> torch.optim.Optimizer:
        import bitsandbytes

        made: torch.optim.Optimizer = getattr(bitsandbytes.optim, name)(rows, betas=o.betas)
        return made

    return make


def _adafactor(rows: Rows, o: Optim) -> torch.optim.Optimizer:
    """With our rate as it stands: its own, which goes by the size of a weight, would hardly move an adapter that begins at 0."""
    from transformers.optimization import Adafactor

    made: torch.optim.Optimizer = Adafactor(rows, scale_parameter=False, relative_step=False, warmup_init=False)
    return made


def _lion(rows: Rows, o: Optim) -> torch.optim.Optimizer:
    from lion_pytorch import Lion

    made: torch.optim.Optimizer = Lion(rows, betas=o.betas)
    return made


def _prodigy(rows: Rows, o: Optim) -> torch.optim.Optimizer:
    """With bias correction and without growth during warmup, as its authors advise for diffusion models."""
    from prodigyopt import Prodigy

    made: torch.optim.Optimizer = Prodigy(rows, betas=o.betas, use_bias_correction=True, safeguard_warmup=True)
    return made


def _schedule_free(rows: Rows, o: Optim) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    made: Any = AdamWScheduleFree(rows, betas=o.betas)
    made.train()
    return made  # type: ignore[no-any-return]


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW on bf16 weights: computed in fp32 for one tensor at a time, and rounded up or down at random, so that small steps are not
    lost on average (Zamirai et al. 2021, arXiv:2010.06192). Moments are fp32; what is drawn is a function of (seed, step, tensor), on the
    device: there are as many numbers as weights."""

    found_inf: Tensor | None = None

    def __init__(self, rows: Rows, o: Optim, seed: int) -> None:
        super().__init__(rows, {"betas": o.betas, "eps": 1e-8, "rounds": 0})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        number = 0
        for group in self.param_groups:
            for p in group["params"]:
                number += 1
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    zero = torch.zeros_like(p, dtype=torch.float32)
                    state |= {"step": torch.zeros((), device=p.device), "exp_avg": zero, "exp_avg_sq": zero.clone()}
                master = p.float()
                adamw(
                    [master], [p.grad.float()], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]], fused=True, amsgrad=False,
                    beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"],
                    eps=group["eps"], maximize=False, found_inf=self.found_inf,
                )  # fmt: skip
                g = torch.Generator(p.device).manual_seed(keys.number(self.seed, "rounding", group["rounds"], number))
                p.copy_(rounded(master, g))
            group["rounds"] += 1


def rounded(x: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 to one of its two neighbours in bf16, the nearer the likelier."""
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    return ((x.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).bfloat16()


OPTIMIZERS = {
    "adamw": Entry(_adamw),
    "adamw8bit": Entry(_bitsandbytes("AdamW8bit"), "bitsandbytes", libraries.install("bitsandbytes"), size=10),
    "paged-adamw8bit": Entry(_bitsandbytes("PagedAdamW8bit"), "bitsandbytes", libraries.install("bitsandbytes"), cuda=True, size=10),
    "adafactor": Entry(_adafactor, size=9),
    "lion": Entry(_lion, "lion_pytorch", libraries.install("optimizers"), size=12),
    "prodigy": Entry(_prodigy, "prodigyopt", libraries.install("optimizers"), size=24),
    "schedule-free": Entry(_schedule_free, "schedulefree", libraries.install("optimizers"), averages=True),
}


def check(o: Optim, device: torch.device) -> None:
    """Raises:
    ConfigError: the optimizer's package is not installed, or it does not run on this device.
    """
    entry = OPTIMIZERS[o.optimizer]
    if entry.package and not libraries.installed(entry.package):
        raise ConfigError(f"--optimizer {o.optimizer}: needs the package {entry.package.replace('_', '-')}", entry.install)
    if entry.cuda and device.type != "cuda":
        raise ConfigError(f"--optimizer {o.optimizer}: needs an NVIDIA device, and this run is on {device.type}", "--optimizer adamw8bit")


def check_rates(o: Optim, rates: Collection[float]) -> None:
    """Raises:
    ConfigError: the optimizer finds one rate for all, and several are given.
    """
    if o.one_rate and len(set(rates)) > 1:
        given = ", ".join(f"{rate:g}" for rate in rates)
        raise ConfigError(
            f"--optimizer {o.optimizer}: finds one rate for all that trains, and rates of {given} are given",
            "leave text_encoder_lr, lr_pattern and lora_plus out, or choose adamw",
        )


def make(rows: Rows, o: Optim, seed: int) -> torch.optim.Optimizer:
    """The optimizer of groups that hold `params`, `lr` and `weight_decay`.

    Raises:
        ConfigError: it finds one rate for all, and the groups have several.
    """
    check_rates(o, [row["lr"] for row in rows])
    if o.masters == "bf16":
        return RoundedAdamW(rows, o, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="prodigyopt")
        return OPTIMIZERS[o.optimizer].make(rows, o)


@torch.no_grad()
def own_average(inner: Any, trainable: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What the optimizer's average is; its switch is not turned back, as that would round, but the weights are put in again."""
    live = {n: p.detach().clone() for n, p in trainable.items()}
    inner.eval()
    average = {n: p.detach().clone() for n, p in trainable.items()}
    for name, p in trainable.items():
        p.copy_(live[name])
    for group in inner.param_groups:
        group["train_mode"] = True
    return average
