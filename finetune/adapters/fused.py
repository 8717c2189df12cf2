"""Projections that an original model keeps in one matrix and diffusers in several, or with the halves of its rows in another order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from finetune.adapters.weights import Weights
from finetune.errors import DataError


def lora(down: Tensor, up: Tensor) -> Weights:
    """A LoRA whose strength is folded in."""
    return Weights("lora", {"down": down, "up": up}, float(down.shape[0]))


Share = Callable[[str], int]  # how many times as high a projection is as the model is wide


def join(order: Sequence[str], members: Mapping[str, Weights], share: Share) -> Weights:
    """LoRAs of projections as one, block-diagonal and exact; `order` is that of the rows, and those that are absent change nothing."""
    pairs = {m: w.pair() for m, w in members.items()}
    down = torch.cat([pairs[m][0] for m in order if m in pairs])
    width = down.shape[1]  # of the model
    rows, column = [], 0
    for m in order:
        row = torch.zeros(share(m) * width, down.shape[0], dtype=down.dtype)
        if m in pairs:
            r = pairs[m][1].shape[1]
            row[:, column : column + r] = pairs[m][1]
            column += r
        rows.append(row)
    return lora(down, torch.cat(rows))


def split_fused(where: str, w: Weights, order: Sequence[str], share: Share) -> list[Weights | None]:
    """A fused projection's adapter as one for each of those that it is of, in the order of its rows; None where it changes nothing.

    Raises:
        DataError: a kind that cannot be taken apart, or rows that are not those of such projections; `where` names it.
    """
    if w.kind == "oft" or (w.decomposed and w.kind != "dora"):
        raise DataError(f"{where}: {w.kind}{' with DoRA' if w.decomposed else ''} on a fused projection is not understood here")
    sizes = _heights(where, w, [share(m) for m in order])
    biases = torch.split(w.tensors["diff_b"], sizes) if "diff_b" in w.tensors else [None] * len(order)
    return [_with_bias(part, bias) for part, bias in zip(_changes(where, w, sizes), biases, strict=True)]


def _heights(where: str, w: Weights, shares: Sequence[int]) -> list[int]:
    """Rows of each projection."""
    height = w.size[0]
    unit = height // sum(shares)
    if unit * sum(shares) != height or unit == 0:
        raise DataError(f"{where}: {height} rows are not those of {len(shares)} projections")
    return [share * unit for share in shares]


def _with_bias(part: Weights | None, bias: Tensor | None) -> Weights | None:
    if bias is None or not bias.any():
        return part
    weights = part or Weights("full", {}, None)
    return replace(weights, tensors=weights.tensors | {"diff_b": bias.contiguous()})


def _changes(where: str, w: Weights, sizes: list[int]) -> list[Weights | None]:
    """The changes of the weights alone."""
    if w.tensors.keys() == {"diff_b"}:
        return [None] * len(sizes)
    if w.kind not in ("lora", "dora") or "mid" in w.tensors:  # no base weight is needed for these kinds' change
        return [Weights("full", {"diff": rows.contiguous()}, None) for rows in torch.split(w.raw().flatten(1), sizes)]
    norms = w.rows()
    if w.kind == "dora" and norms is None:
        raise DataError(f"{where}: DoRA over the columns of a fused projection is not understood here")
    magnitudes = torch.split(norms, sizes) if norms is not None else [None] * len(sizes)
    parts: list[Weights | None] = []
    for up, magnitude in zip(torch.split(w.tensors["up"], sizes), magnitudes, strict=True):
        used = up.flatten(1).abs().sum(0) > 0  # a block-diagonal pair gives each projection back its own rank
        if not used.any() and magnitude is None:
            parts.append(None)
            continue
        used = used if used.any() else torch.ones_like(used)
        tensors = {"down": w.tensors["down"][used].contiguous(), "up": up[:, used].contiguous()}
        if magnitude is not None:
            tensors["rows"] = magnitude.contiguous()
        parts.append(Weights(w.kind, tensors, w.strength * int(used.sum())))
    return parts


# What holds a layer's outputs along its first axis. LoKr's second factor alone does not: it is written out.
_OUTPUTS = {
    "lora": ("up", "diff_b"),
    "dora": ("up", "rows", "dora", "diff_b"),
    "loha": ("w1_a", "w2_a", "diff_b"),
    "full": ("diff", "diff_b"),
}


def swapped(where: str, w: Weights) -> Weights:
    """With the two halves of the layer's outputs in the other order: some keep scale and shift of a norm so.

    Raises:
        DataError: a kind whose rows cannot be told apart; `where` names it.
    """
    if w.kind == "oft" or (w.decomposed and (w.kind != "dora" or w.rows() is None)):
        raise DataError(f"{where}: {w.what} on a layer whose rows stand in another order is not understood here")
    if w.kind not in _OUTPUTS or w.tensors.keys() & {"t1", "mid"}:
        kept = {k: t for k, t in w.tensors.items() if k == "diff_b"}
        w = Weights("full", {"diff": w.raw().flatten(1)} | kept, None)
    turned = {k: t.roll(len(t) // 2, 0) if k in _OUTPUTS[w.kind] else t for k, t in w.tensors.items()}
    return replace(w, tensors=turned)
