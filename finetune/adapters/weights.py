"""What an adapter does to one layer's weight, by the kind that its tensors' names give away.

The change of weight of every kind follows LyCORIS (Yeh et al. 2023, arXiv:2309.14859), whose files are read here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from finetune.adapters import leaves
from finetune.adapters.leaves import RANKED


@dataclass(frozen=True)
class Weights:
    """The tensors of one module by the names in leaves.py; `alpha` is a number, or None where the file has none.

    `diff_b` [out] is a change of the layer's bias, which every kind may have beside its change of the weight, or alone.

    DoRA's norms are `rows` [out], or LyCORIS's `dora`, whose shape says whether they are those of rows or of columns.
    """

    kind: str
    tensors: dict[str, Tensor]
    alpha: float | None

    @property
    def rank(self) -> int:
        """Of the low-rank kinds; 0 for the others."""
        return next((self.tensors[name].shape[0] for name in RANKED if name in self.tensors), 0)

    @property
    def size(self) -> tuple[int, int]:
        """Outputs and inputs of the layer that it fits; 0 where the tensors do not tell."""
        return leaves.layer_size({name: tuple(t.shape) for name, t in self.tensors.items()})

    @property
    def strength(self) -> float:
        """alpha / rank; 1 without an alpha. Files of full matrices have no rank to divide by."""
        return self.alpha / self.rank if self.alpha is not None and self.rank and self.kind != "oft" else 1.0

    def rows(self) -> Tensor | None:
        """DoRA's norms [out] if they are those of rows; None for others, and without DoRA."""
        if "rows" in self.tensors:
            return self.tensors["rows"].flatten()
        magnitude = self.tensors.get("dora")
        return magnitude.flatten() if magnitude is not None and magnitude.shape[0] == self.size[0] == magnitude.numel() else None

    @property
    def peft(self) -> bool:
        """Whether PEFT's LoRA layers can hold it."""
        whole = self.kind in ("lora", "dora") and not self.tensors.keys() & {"mid", "diff_b"}
        return whole and (self.kind == "lora" or self.rows() is not None)

    @property
    def what(self) -> str:
        """Its kind for a reader: what makes it none that PEFT's layers hold comes first."""
        if "diff_b" in self.tensors:
            return "a change of bias"
        if self.kind not in ("lora", "dora"):
            return self.kind
        if "mid" in self.tensors:
            return "Tucker LoRA"
        return "DoRA over columns" if self.decomposed and self.rows() is None else self.kind

    def shaped(self, shape: Sequence[int]) -> "Weights":
        """As a layer of the weight's `shape` [out, in, ...] has it: LoRA's matrices with a kernel of one pixel, or without one. Other
        kinds, and kernels that are wider, stay as they are."""
        down, up = self.tensors.get("down"), self.tensors.get("up")
        if down is None or up is None or "mid" in self.tensors:
            return self
        wide = prod(down.shape[2:]) > 1 or prod(shape[2:]) > 1
        kernel = tuple(down.shape[2:]) if wide else (1,) * (len(shape) - 2)
        ones = [1] * len(kernel)
        fitted = {"down": down.reshape(*down.shape[:2], *kernel), "up": up.reshape(*up.shape[:2], *ones)}
        return replace(self, tensors=self.tensors | fitted)

    def pair(self) -> tuple[Tensor, Tensor]:
        """(down, up) of a LoRA in the file's own precision, with the strength folded into the larger one: it does not underflow."""
        down, up, s = self.tensors["down"], self.tensors["up"], self.strength
        if s == 1:
            return down, up
        if down.abs().max() >= up.abs().max():
            return (down.float() * s).to(down.dtype), up
        return down, (up.float() * s).to(up.dtype)

    def change(self, weight: Tensor) -> Tensor:
        """The change of the layer's weight in fp32 and on its device, shaped as `weight` [out, in, ...]."""
        t = {k: v.to(weight.device, torch.float32) for k, v in self.tensors.items()}
        weight = weight.float()
        change = CHANGES[self.kind](t, self, weight).reshape(weight.shape)
        return _decomposed(weight, change, t) - weight if self.decomposed else change

    @property
    def decomposed(self) -> bool:
        """Whether it is DoRA, of whatever kind beneath: its change depends on the layer's own weight."""
        return bool(self.tensors.keys() & {"dora", "rows"})

    def raw(self) -> Tensor:
        """The change before DoRA, in fp32, in whatever shape its matrices give. Not for OFT, which turns the layer's own weight."""
        t = {k: v.float() for k, v in self.tensors.items()}
        return CHANGES[self.kind](t, self, torch.zeros(()))


def _lora(t: dict[str, Tensor], w: Weights, weight: Tensor) -> Tensor:
    down, up = t["down"], t["up"].flatten(1)
    if "mid" in t:  # Tucker: up [out, r], mid [r, r, k, k], down [r, in]
        return torch.einsum("ij...,jr,oi->or...", t["mid"], down.flatten(1), up) * w.strength
    return up @ down.flatten(1) * w.strength


def _loha(t: dict[str, Tensor], w: Weights, weight: Tensor) -> Tensor:
    if "t1" in t:
        halves = [torch.einsum("ij...,jr,ip->pr...", t[f"t{i}"], t[f"w{i}_b"], t[f"w{i}_a"]) for i in (1, 2)]
    else:
        halves = [t[f"w{i}_a"].flatten(1) @ t[f"w{i}_b"].flatten(1) for i in (1, 2)]
    return halves[0] * halves[1] * w.strength


def _lokr(t: dict[str, Tensor], w: Weights, weight: Tensor) -> Tensor:
    first = t["k1"] if "k1" in t else t["k1_a"] @ t["k1_b"]
    if "k2" in t:
        second = t["k2"]
    elif "k2_t" in t:
        second = torch.einsum("ij...,jr,ip->pr...", t["k2_t"], t["k2_b"], t["k2_a"])
    else:
        second = (t["k2_a"] @ t["k2_b"].flatten(1)).view(t["k2_a"].shape[0], *t["k2_b"].shape[1:])
    return torch.kron(first.view(*first.shape, *[1] * (second.ndim - 2)), second.contiguous()) * w.strength


def _oft(t: dict[str, Tensor], w: Weights, weight: Tensor) -> Tensor:
    q = t["blocks"] - t["blocks"].transpose(-1, -2)
    bound = (w.alpha or 0) * q.shape[0] * q.shape[1]  # the file's alpha is the constraint for each output
    if bound and (norm := q.norm()) > bound:
        q = q * bound / norm
    eye = torch.eye(q.shape[-1], device=q.device)
    rotation = (eye + q) @ torch.linalg.inv(eye - q)
    rows = weight.view(q.shape[0], q.shape[1], -1)
    turned = torch.einsum("knm,kni->kmi", rotation, rows).reshape(weight.shape)
    return turned * t.get("rescale", torch.ones((), device=q.device)) - weight


def _full(t: dict[str, Tensor], w: Weights, weight: Tensor) -> Tensor:
    return t["diff"] if "diff" in t else torch.zeros_like(weight)


def _decomposed(weight: Tensor, change: Tensor, t: dict[str, Tensor]) -> Tensor:
    """DoRA (Liu et al. 2024, arXiv:2402.09353): the direction of weight + change, with learned norms of its rows or columns."""
    moved = weight + change
    magnitude = t["rows"] if "rows" in t else t["dora"]
    axis = 0 if "rows" in t or magnitude.shape[0] == weight.shape[0] else 1
    across = [i for i in range(weight.ndim) if i != axis]
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    norms: Tensor = torch.linalg.vector_norm(moved, dim=across, keepdim=True)
    return moved * magnitude.flatten().view(shape) / norms


CHANGES: dict[str, Callable[[dict[str, Tensor], Weights, Tensor], Tensor]] = {
    "lora": _lora,
    "dora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "oft": _oft,
    "full": _full,
}
