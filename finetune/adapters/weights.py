"""What an adapter does to one layer's weight, by the kind that its tensors' names give away.

The change of weight of every kind follows LyCORIS (Yeh et al. 2023, arXiv:2309.14859), whose files are read here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# What a key may end in -> our name for the tensor. Longer endings first: `.lora.down.weight` also ends in `.down.weight`.
LEAVES = {
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid",
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up", ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up", "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".lora_magnitude_vector.weight": "rows", ".lora_magnitude_vector.default.weight": "rows", ".lora_magnitude_vector": "rows",
    ".dora_scale": "dora", ".alpha": "alpha",
    ".hada_w1_a": "w1_a", ".hada_w1_b": "w1_b", ".hada_w2_a": "w2_a", ".hada_w2_b": "w2_b", ".hada_t1": "t1", ".hada_t2": "t2",
    ".lokr_w1": "k1", ".lokr_w1_a": "k1_a", ".lokr_w1_b": "k1_b", ".lokr_w2": "k2", ".lokr_w2_a": "k2_a", ".lokr_w2_b": "k2_b",
    ".lokr_t2": "k2_t", ".oft_blocks": "blocks", ".rescale": "rescale", ".diff": "diff", ".diff_b": "diff_b",
    ".w_norm": "diff", ".b_norm": "diff_b",
}  # fmt: skip
KINDS = {"down": "lora", "w1_a": "loha", "k1": "lokr", "k1_a": "lokr", "blocks": "oft", "diff": "full", "diff_b": "full"}
NEEDS = {
    "lora": {"down", "up"}, "loha": {"w1_a", "w1_b", "w2_a", "w2_b"}, "lokr": set(), "oft": {"blocks"}, "full": {"diff"},
}  # fmt: skip
RANKED = ("down", "w1_b", "k2_b", "k1_b")  # tensors whose first axis is the rank


def kind(leaves: Mapping[str, object]) -> str | None:
    """lora, dora, loha, lokr, oft or full; None for tensors that make no whole adapter."""
    found = next((KINDS[name] for name in KINDS if name in leaves), None)
    if found is None or not NEEDS[found] <= leaves.keys():
        return None
    halves = (({"k1"}, {"k1_a", "k1_b"}), ({"k2"}, {"k2_a", "k2_b"}))
    if found == "lokr" and not all(any(way <= leaves.keys() for way in ways) for ways in halves):
        return None
    return "dora" if found == "lora" and leaves.keys() & {"dora", "rows"} else found


@dataclass(frozen=True)
class Weights:
    """The tensors of one module by the names in LEAVES; `alpha` is a number, or None where the file has none.

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
        t = self.tensors
        if "down" in t:
            return t["up"].shape[0], t["down"].shape[1]
        if "diff" in t:
            return t["diff"].shape[0], t["diff"].shape[1] if t["diff"].ndim > 1 else 0
        if "w1_a" in t:
            return (t["w1_a"].shape[1], t["w1_b"].shape[1]) if "t1" in t else (t["w1_a"].shape[0], t["w1_b"].shape[1])
        if "blocks" in t:
            return t["blocks"].shape[0] * t["blocks"].shape[1], 0
        if not t.keys() & {"k1", "k1_a"}:
            return 0, 0
        first = t["k1"].shape if "k1" in t else (t["k1_a"].shape[0], t["k1_b"].shape[1])
        second = t["k2"].shape if "k2" in t else (t["k2_a"].shape[1 if "k2_t" in t else 0], t["k2_b"].shape[1])
        return first[0] * second[0], first[1] * second[1]

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
        return self.kind in ("lora", "dora") and "mid" not in self.tensors and (self.kind == "lora" or self.rows() is not None)

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
    "lora": _lora, "dora": _lora, "loha": _loha, "lokr": _lokr, "oft": _oft, "full": _full,
}  # fmt: skip
