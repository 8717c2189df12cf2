"""Low-rank adapters on a network: PEFT's layers, injected, seeded, and handed over layout-free."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from finetune.config.job import Method
from finetune.data import keys
from finetune.errors import ConfigError

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


def matching(net: nn.Module, targets: str, choices: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The linear and convolution layers that are adapted: those named by an ending, a dot and an ending, or a pattern with `*`.

    `targets` is one of the named `choices`, or endings with commas.

    Raises:
        ConfigError: an ending that was named by hand, or all of a named choice, matches no layer.
    """
    adaptable = [n for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    chosen = choices.get(targets)
    endings = chosen or [t.strip() for t in targets.split(",") if t.strip()]
    found = {e: [n for n in adaptable if n == e or n.endswith(f".{e}") or fnmatchcase(n, e)] for e in endings}
    idle = [e for e, names in found.items() if not names]
    if not any(found.values()) or (idle and not chosen):
        raise ConfigError(
            f"method.targets {', '.join(idle) or targets}: matches no layer of this base",
            f"choose from {', '.join(choices)}, or name layers",
        )
    wanted = {n for names in found.values() for n in names}
    return [n for n in adaptable if n in wanted]


def attach(
    net: nn.Module, method: Method, choices: Mapping[str, tuple[str, ...]], seed: int, idle: tuple[str, ...] = ()
) -> dict[str, nn.Parameter]:
    """Injects the adapter in fp32 into a frozen network and returns what trains, by name; layers that begin with `idle` are left out.

    Endings that were named by hand are the denoiser's; a text encoder's attention is adapted then.

    Raises:
        ConfigError: a target matches no linear or convolution layer.
    """
    text = hasattr(net, "get_input_embeddings")
    targets = method.targets if method.targets in choices or not text else "attention"
    found = [n for n in matching(net, targets, choices) if not n.removeprefix("text_model.").startswith(idle or ("\0",))]
    with keys.global_rng(seed, "adapter"):
        config = ROWS[method.kind].config(method, found)
        if text:
            inject_adapter_in_model(config, net, NAME)
        else:
            net.add_adapter(config, adapter_name=NAME)  # type: ignore[operator]
    trainable = {n: p for n, p in net.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    return trainable


def layers(net: nn.Module) -> dict[str, Any]:
    """The adapted layers by the name that the module has in the base."""
    return {n: m for n, m in net.named_modules() if isinstance(m, BaseTunerLayer)}


def result(net: nn.Module) -> dict[str, Lora]:
    """Every adapted module's matrices in fp32 on the CPU, with the strength folded in: what a file says is what applies."""
    out = {}
    for name, layer in layers(net).items():
        down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        folded = up.detach().float() * float(layer.scaling[NAME])
        out[name] = Lora(down.detach().float().cpu().clone(), folded.cpu().clone())
    return out
