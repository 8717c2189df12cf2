"""Matrices taken apart: what several rooms need, and no library has in this form."""

import torch
from torch import Tensor

SPARE = 16  # directions beyond the rank that a factorisation looks at


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """down [r, in] and up [out, r] of the best approximation of `matrix` [out, in] of a rank (Eckart and Young 1936), or of its own where
    that is smaller; the same for the same matrix."""
    with torch.random.fork_rng(devices=[]):
        if matrix.device.type == "cpu":  # alone: for every other device torch would note the whole stack, until one is used
            torch.default_generator.manual_seed(0)
        else:
            torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix, q=min(rank + SPARE, *matrix.shape), niter=6)
    root = s[:rank].sqrt()
    return (root[:, None] * v[:, :rank].T).contiguous(), (u[:, :rank] * root).contiguous()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Without a wait: on CUDA the copy is asynchronous, which takes pinned memory."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
