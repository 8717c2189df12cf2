"""Latents as tokens of 2x2, as transformers on packed patches take them."""

import torch
from torch import Tensor


def pack(x: Tensor) -> Tensor:
    """[B, C, H, W] -> tokens [B, H/2 W/2, 4 C]."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), 4 * c)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """[B, H/2 W/2, 4 C] -> [B, C, H, W], of `h` x `w` latents."""
    b, _, c = tokens.shape
    return tokens.view(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, h, w)


def positions(h: int, w: int, device: torch.device | str) -> Tensor:
    """[H/2 W/2, 3]: 0, row and column of each token."""
    rows, columns = torch.arange(h // 2, device=device), torch.arange(w // 2, device=device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], 1).float()
