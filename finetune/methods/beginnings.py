"""The tensors of an adapter that changes a layer's weight as a file of another kind does: how a run goes on from whole differences.

Each function takes the weight [out, in, ...], its difference in the same shape, and the rank, all in fp32, and returns the tensors by the
names in rows.py with strength 1, and the difference that these make.
"""

import torch
from torch import Tensor

from finetune.tensors import factors

Made = tuple[dict[str, Tensor], Tensor]
ROUNDS, ENOUGH, STALLED = 200, 1e-6, 0.995  # of the search for DoRA's norms: it ends at that share of the change, or where it gains no more


def low_rank(weight: Tensor, difference: Tensor, rank: int) -> Made:
    """LoRA: the best approximation of the rank."""
    down, up = factors(difference.flatten(1), rank)
    return {"down": down, "up": up}, (up @ down).view_as(weight)


def decomposed(weight: Tensor, difference: Tensor, rank: int) -> Made:
    """DoRA: norms of the rows, and a LoRA of their directions. With the changed rows t = m (w + ba) / |w + ba|, m is |t|; what is left
    open is |w + ba|, for which t |w + ba| / m - w has to be of the rank. It is found by turns."""
    base, target = weight.flatten(1), (weight + difference).flatten(1)
    rows = target.norm(dim=1, keepdim=True)
    unit = target / rows
    norms, missed = rows, torch.inf
    for _ in range(ROUNDS):
        down, up = factors(unit * norms - base, rank)
        moved = base + up @ down
        norms = moved.norm(dim=1, keepdim=True)
        made = moved * rows / norms - base
        before, missed = missed, float((made - difference.flatten(1)).norm() / difference.norm())
        if missed <= ENOUGH or missed > STALLED * before:
            break
    return {"down": down, "up": up, "rows": rows.flatten()}, made.view_as(weight)


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
    made = (base @ turn.transpose(1, 2) - base).transpose(0, 1).flatten(1)
    return {"turn": skew[:, above[0], above[1]].float()}, made.float().view_as(weight)
