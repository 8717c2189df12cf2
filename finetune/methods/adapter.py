"""Low-rank adapters on the denoiser: PEFT's layers, injected, seeded, and handed over layout-free."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from finetune.config.job import Method
from finetune.data import keys
from finetune.errors import ConfigError
from finetune.families.spec import FamilySpec

NAME = "default"


@dataclass(frozen=True)
class Lora:
    """One adapted module: delta W = strength * up @ down. `down` [r, in], `up` [out, r]; convolutions keep their kernel axes."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class Row:
    """An adapter type of PEFT: how its config is made of our settings."""

    config: Callable[[Method, list[str]], Any]


def _lora(method: Method, targets: list[str]) -> LoraConfig:
    alpha = method.strength * method.rank
    return LoraConfig(r=method.rank, lora_alpha=alpha, lora_dropout=method.dropout, target_modules=targets, bias="none")


ROWS = {"lora": Row(_lora)}


def matching(net: nn.Module, method: Method, spec: FamilySpec) -> list[str]:
    """The linear and convolution layers that the method adapts: those named by an ending, a dot and an ending, or a pattern with `*`.

    Raises:
        ConfigError: an ending that was named by hand, or all of a named choice, matches no layer.
    """
    adaptable = [n for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    chosen = spec.targets.get(method.targets)
    endings = chosen or [t.strip() for t in method.targets.split(",") if t.strip()]
    found = {e: [n for n in adaptable if n == e or n.endswith(f".{e}") or fnmatchcase(n, e)] for e in endings}
    idle = [e for e, names in found.items() if not names]
    if not any(found.values()) or (idle and not chosen):
        raise ConfigError(
            f"method.targets {', '.join(idle) or method.targets}: matches no layer of this base",
            f"choose from {', '.join(spec.targets)}, or name layers",
        )
    wanted = {n for names in found.values() for n in names}
    return [n for n in adaptable if n in wanted]


def attach(denoiser: nn.Module, method: Method, spec: FamilySpec, seed: int) -> dict[str, nn.Parameter]:
    """Injects the adapter in fp32 and returns what trains, by name. All else is frozen.

    Raises:
        ConfigError: a target matches no linear or convolution layer.
    """
    denoiser.requires_grad_(False)
    found = matching(denoiser, method, spec)
    with keys.global_rng(seed, "adapter"):
        denoiser.add_adapter(ROWS[method.kind].config(method, found), adapter_name=NAME)  # type: ignore[operator]
    trainable = {n: p for n, p in denoiser.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    return trainable


def layers(denoiser: nn.Module) -> dict[str, Any]:
    """The adapted layers by the name that the module has in the base."""
    return {n: m for n, m in denoiser.named_modules() if isinstance(m, BaseTunerLayer)}


def result(denoiser: nn.Module) -> dict[str, Lora]:
    """Every adapted module's matrices in fp32 on the CPU, with the strength folded in: what a file says is what applies."""
    out = {}
    for name, layer in layers(denoiser).items():
        down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        folded = up.detach().float() * float(layer.scaling[NAME])
        out[name] = Lora(down.detach().float().cpu().clone(), folded.cpu().clone())
    return out
