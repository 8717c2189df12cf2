"""The tensors of an adapter that changes a layer's weight as a file of another kind does: how a run goes on from whole differences.

Each function takes the weight [out, in, ...], its difference in the same shape, and the rank, all in fp32, and returns the tensors by the
names in config/adapter_types.py with strength 1, and the difference that these make.
"""

import torch
from torch import Tensor

from finetune.tensors import factors

Made = tuple[dict[str, Tensor], Tensor]
# Of the search for DoRA's norms: it ends at a share of the change, or where it gains no more; above GOOD it begins elsewhere, so often.
ROUNDS, ENOUGH, STALLED, GOOD, ANEW = 500, 1e-6, 0.9999, 1e-3, 12


def low_rank(weight: Tensor, difference: Tensor, rank: int) -> Made:
    """LoRA: the best approximation of the rank."""
    down, up = factors(difference.flatten(1), rank)
    return {"down": down, "up": up}, (up @ down).view_as(weight)


def decomposed(weight: Tensor, difference: Tensor, rank: int) -> Made:
    """DoRA: norms of the rows, and a LoRA of their directions. With the changed rows t = m (w + ba) / |w + ba|, m is |t|; what is left
    open is |w + ba|, for which t |w + ba| / m - w has to be of the rank. It is found by turns. Where the rank is not small beside the
    layer a search may end beside the answer: it begins anew elsewhere then."""
    base, change = weight.flatten(1).double(), difference.flatten(1).double()
    rows = (base + change).norm(dim=1, keepdim=True)
    unit = (base + change) / rows
    nearest = (unit * base).sum(1, keepdim=True)  # where t is longest along w
    g = torch.Generator().manual_seed(0)
    around = (rows * torch.randn(rows.shape, generator=g, dtype=rows.dtype).to(rows).mul(0.3).exp() for _ in range(ANEW))
    searches: list[tuple[tuple[Tensor, Tensor], float]] = []
    for norms in (nearest, rows, *around):
        searches.append(_turns(base, change, unit, rows, norms, rank))
        if searches[-1][1] <= GOOD:
            break
    (down, up), _ = min(searches, key=lambda f: f[1])
    moved = base + up @ down
    reached = moved * rows / moved.norm(dim=1, keepdim=True) - base
    tensors = {"down": down, "up": up, "rows": rows.flatten()}
    return {k: t.float() for k, t in tensors.items()}, reached.float().view_as(weight)


def _turns(base: Tensor, change: Tensor, unit: Tensor, rows: Tensor, norms: Tensor, rank: int) -> tuple[tuple[Tensor, Tensor], float]:
    """down and up, and the share of the change that they miss."""
    missed = float("inf")
    for _ in range(ROUNDS):
        down, up = factors(unit * norms - base, rank)
        moved = base + up @ down
        norms = moved.norm(dim=1, keepdim=True)
        before, missed = missed, float((moved * rows / norms - base - change).norm() / change.norm())
        if missed <= ENOUGH or missed > STALLED * before:
            break
    return (down, up), missed


def rotation(weight: Tensor, difference: Tensor, size: int) -> Made:
    """OFT: the rotations of blocks of `size` inputs that turn the weight most nearly into the changed one (orthogonal Procrustes problem,
    Schönemann 1966), as the skew-symmetric matrices of Cayley's form, of which PEFT keeps what stands above the diagonal."""
    outputs = len(weight)
    base, target = (x.reshape(outputs, -1, size).transpose(0, 1).double() for x in (weight, weight + difference))
    u, _, vh = torch.linalg.svd(base.transpose(1, 2) @ target)
    turn = (u @ vh).transpose(1, 2)  # PEFT's x R, which is W R' of the weight
    eye = torch.eye(size, dtype=turn.dtype, device=turn.device)
    skew = torch.linalg.solve(eye + turn, eye - turn)
    above = torch.triu_indices(size, size, 1, device=turn.device)
    turned = (base @ turn.transpose(1, 2) - base).transpose(0, 1).flatten(1)
    return {"turn": skew[:, above[0], above[1]].float()}, turned.float().view_as(weight)
