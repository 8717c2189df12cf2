"""What moves the weights: the optimizers, each of its own library, an update that a non-finite gradient cannot pass, and state that can
be kept. The torch-free table is config/optimizers.py."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from finetune import randomness
from finetune.config.optim import Optim
from finetune.config.optimizers import check_rates
from finetune.methods.trainees import ParameterGroup
from finetune.results.checkpoint import State

TorchGroups = list[dict[str, Any]]  # parameter groups
Number = bool | int | float


class Averaging(Protocol):
    """An optimizer that keeps an average of the weights, and puts it in their place when asked."""

    def train(self) -> None:
        """The weights that train."""

    def eval(self) -> None:
        """Their average."""


def _adamw(rows: TorchGroups, o: Optim) -> torch.optim.Optimizer:
    """Fused: one kernel a step, and it takes `found_inf`, which drops an update on the device without a look from the host."""
    return torch.optim.AdamW(rows, betas=o.betas, fused=True)


def _bitsandbytes(name: str) -> Callable[[TorchGroups, Optim], torch.optim.Optimizer]:
    def make(rows: TorchGroups, o: Optim) -> torch.optim.Optimizer:
        import bitsandbytes

        optimizer: torch.optim.Optimizer = getattr(bitsandbytes.optim, name)(rows, betas=o.betas)
        return optimizer

    return make


def _adafactor(rows: TorchGroups, o: Optim) -> torch.optim.Optimizer:
    """With our rate as it stands: its own, which goes by the size of a weight, would hardly move an adapter that begins at 0."""
    from transformers.optimization import Adafactor

    optimizer: torch.optim.Optimizer = Adafactor(rows, scale_parameter=False, relative_step=False, warmup_init=False)
    return optimizer


def _lion(rows: TorchGroups, o: Optim) -> torch.optim.Optimizer:
    from lion_pytorch import Lion

    optimizer: torch.optim.Optimizer = Lion(rows, betas=o.betas)
    return optimizer


def _prodigy(rows: TorchGroups, o: Optim) -> torch.optim.Optimizer:
    """With bias correction and without growth during warmup, as its authors advise for diffusion models."""
    from prodigyopt import Prodigy

    optimizer: torch.optim.Optimizer = Prodigy(rows, betas=o.betas, use_bias_correction=True, safeguard_warmup=True)
    return optimizer


def _schedule_free(rows: TorchGroups, o: Optim) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    optimizer: torch.optim.Optimizer = AdamWScheduleFree(rows, betas=o.betas)
    cast(Averaging, optimizer).train()
    return optimizer


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW on bf16 weights: computed in fp32 for one tensor at a time, and rounded up or down at random, so that small steps are not
    lost on average (Zamirai et al. 2021, arXiv:2010.06192). Moments are fp32; what is drawn is a function of (seed, step, tensor), on the
    device: there are as many numbers as weights."""

    found_inf: Tensor | None = None

    def __init__(self, rows: TorchGroups, o: Optim, seed: int) -> None:
        super().__init__(rows, {"betas": o.betas, "eps": 1e-8, "rounds": 0})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
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
                    [master],
                    [p.grad.float()],
                    [state["exp_avg"]],
                    [state["exp_avg_sq"]],
                    [],
                    [state["step"]],
                    fused=True,
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                    found_inf=self.found_inf,
                )
                g = torch.Generator(p.device).manual_seed(randomness.number(self.seed, "rounding", group["rounds"], number))
                p.copy_(rounded(master, g))
            group["rounds"] += 1


def rounded(x: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 to one of its two neighbours in bf16, the nearer the likelier."""
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    return ((x.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).bfloat16()


MAKERS: dict[str, Callable[[TorchGroups, Optim], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _bitsandbytes("AdamW8bit"),
    "paged-adamw8bit": _bitsandbytes("PagedAdamW8bit"),
    "adafactor": _adafactor,
    "lion": _lion,
    "prodigy": _prodigy,
    "schedule-free": _schedule_free,
}


def make(rows: TorchGroups, o: Optim, seed: int) -> torch.optim.Optimizer:
    """The optimizer of groups that hold `params`, `lr` and `weight_decay`.

    Raises:
        ConfigError: it finds one rate for all, and the groups have several.
    """
    check_rates(o.optimizer, [row["lr"] for row in rows])
    if o.masters == "bf16":
        return RoundedAdamW(rows, o, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="prodigyopt")
        return MAKERS[o.optimizer](rows, o)


@torch.no_grad()
def own_average(inner: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What the optimizer's average is; its switch is not turned back, as that would round, but the weights are put in again."""
    live = {n: p.detach().clone() for n, p in trainable.items()}
    cast(Averaging, inner).eval()
    average = {n: p.detach().clone() for n, p in trainable.items()}
    for name, p in trainable.items():
        p.copy_(live[name])
    for group in inner.param_groups:
        group["train_mode"] = True
    return average


def torch_groups(groups: Sequence[ParameterGroup]) -> TorchGroups:
    """What trains as an optimizer takes it."""
    return [
        {"params": list(g.parameters.values()), "lr": g.lr, "weight_decay": g.weight_decay, "peak": g.lr, "until": g.until} for g in groups
    ]


def parameters(groups: Sequence[ParameterGroup]) -> dict[str, nn.Parameter]:
    """All that trains, by name, in the order in which an optimizer of these groups has it."""
    joined: dict[str, nn.Parameter] = {}
    for group in groups:
        joined |= group.parameters
    return joined


def guard(optimizer: torch.optim.Optimizer, gradient_norm: Tensor) -> Tensor:
    """Keeps a norm that is not finite from the weights; returns that flag, 0. or 1.

    A fused step does nothing then. Others take a gradient of 0: their momentum may move the weights, which stay finite.
    """
    bad = (~torch.isfinite(gradient_norm)).float()
    if optimizer.defaults.get("fused") or hasattr(optimizer, "found_inf"):
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        return bad
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.copy_(torch.where(bad > 0, torch.zeros_like(p.grad), p.grad))
    return bad


def set_rate(optimizer: torch.optim.Optimizer, share: float, progress: float) -> None:
    """Every group's rate as a share of its peak. One whose part of the run is over loses its gradient: it does not move, and has no
    share in the norm that the others are clipped by."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
        if over(group, progress):
            for parameter in group["params"]:
                parameter.grad = None


def over(group: dict[str, Any], progress: float) -> bool:
    """Whether a group trains no longer at a share of the steps."""
    return bool(progress >= group["until"])


def state(optimizer: torch.optim.Optimizer, names: list[str]) -> State:
    """Flat `name/exp_avg`, `name/step` tensors, in the order the parameters were given; and numbers, those of groups as `group 0/d`."""
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    held: dict[str, object] = {}
    for name, parameter in zip(names, parameters, strict=True):
        held |= {f"{name}/{key}": value for key, value in optimizer.state[parameter].items()}
    for i, group in enumerate(optimizer.param_groups):
        held |= {f"group {i}/{key}": value for key, value in group.items() if key not in OURS}
    return {key: _kept(value) for key, value in held.items() if isinstance(value, Number | Tensor)}


OURS = {"lr", "peak", "until", "params"}  # of a group: set before every step, or by the job
NUMBERS = {torch.int64: int, torch.float64: float, torch.bool: bool}


def _kept(value: Number | Tensor) -> Tensor:
    """Numbers become tensors of the widest types, which nothing else here is of."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def restore(optimizer: torch.optim.Optimizer, names: list[str], saved: State) -> None:
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for name, p in zip(names, parameters, strict=True):
        optimizer.state[p] = _entries(saved, f"{name}/", p.device)
    for i, group in enumerate(optimizer.param_groups):
        group |= _entries(saved, f"group {i}/", torch.device("cpu"))


def _entries(saved: State, prefix: str, device: torch.device) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in saved.items():
        if key.startswith(prefix):
            is_number = value.ndim == 0 and value.dtype in NUMBERS
            entries[key.removeprefix(prefix)] = NUMBERS[value.dtype](value) if is_number else value.to(device)
    return entries


@torch.no_grad()
def ema_update(shadow: list[Tensor], parameters: list[Tensor], decay: float, step: int) -> None:
    """shadow <- d shadow + (1 - d) parameters, with the ramp d = min(decay, (1 + step) / (10 + step))."""
    torch._foreach_lerp_(shadow, [p.detach().float() for p in parameters], 1 - min(decay, (1 + step) / (10 + step)))
