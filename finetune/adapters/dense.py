"""An adapter's changes written out whole, and whole changes as low-rank ones: what no layout holds, every tool can read so."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from finetune.adapters.fused import lora
from finetune.adapters.layouts import Modules, Place
from finetune.adapters.weights import Weights
from finetune.tensors import factors

Base = Callable[[str, str], Tensor]  # the base's own weight [out, in, ...] of a part's module


def needs_base(modules: Modules) -> bool:
    """Whether a change depends on the base's own weights: DoRA's and OFT's."""
    return any(w.decomposed or w.kind == "oft" for w in modules.values())


def like(w: Weights) -> Tensor:
    """A weight of zeros that has the shape of the change, for kinds whose change does not depend on it."""
    return torch.zeros_like(w.raw())


@torch.no_grad()
def full(modules: Modules, base: Base) -> dict[Place, Weights]:
    """Every module as the difference of its weight, in the shape of the layer, and of its bias."""
    out = {}
    for place, w in modules.items():
        bias = {k: t for k, t in w.tensors.items() if k == "diff_b"}
        tensors = {} if w.tensors.keys() == bias.keys() else {"diff": w.change(base(*place)).cpu().contiguous()}
        out[place] = Weights("full", tensors | bias, None)
    return out


@torch.no_grad()
def svd(modules: Mapping[Place, Weights], rank: int) -> tuple[dict[Place, Weights], float]:
    """The best LoRA of a rank for whole differences (Eckart and Young 1936), and the share of the change that it misses: the Frobenius
    norm of what is left over that of all. Biases, and layers whose weight has one axis, stay as they are."""
    out: dict[Place, Weights] = {}
    missed = whole = 0.0
    for place, w in modules.items():
        diff = w.tensors.get("diff")
        if diff is None or diff.ndim < 2:
            out[place] = w
            continue
        down, up = factors(diff.float().flatten(1), rank)
        whole += float(diff.float().square().sum())
        missed += float((diff.float().flatten(1) - up @ down).square().sum())
        shaped = lora(down.view(len(down), *diff.shape[1:]), up.view(*up.shape, *[1] * (diff.ndim - 2)))
        bias = {k: t for k, t in w.tensors.items() if k == "diff_b"}
        out[place] = Weights("lora", shaped.tensors | bias, shaped.alpha)
    return out, (missed / whole) ** 0.5 if whole else 0.0
