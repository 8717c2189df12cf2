"""The noise that a picture is mixed with, changed before it is: a function of (seed, step, slot), drawn on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune import randomness


@dataclass(frozen=True)
class Shaping:
    """`offset`: a random constant for each channel, so that brightness is learned (Guttenberg 2023, "Diffusion with offset noise").

    `pyramid`: noise of ever coarser grids is added, each `discount` times the one before, and all brought to unit variance
    (Whitaker 2023, "Multi-resolution noise"). `perturbation`: the network sees that much more noise than it is to predict
    (Ning et al. 2023, arXiv:2301.11706).
    """

    offset: float = 0.0
    pyramid: int = 0  # coarser grids
    discount: float = 0.8
    perturbation: float = 0.0

    def __call__(self, noise: Tensor, slots: Sequence[int], seed: int, step: int) -> Tensor:
        """What is to be predicted; [B, C, H, W]."""
        if not (self.offset or self.pyramid):
            return noise
        return torch.stack([self._shaped(row, seed, step, slot) for row, slot in zip(noise, slots, strict=True)])

    def _shaped(self, row: Tensor, seed: int, step: int, slot: int) -> Tensor:
        c, h, w = row.shape
        g = randomness.generator(seed, "noise shape", step, slot)
        for level in range(1, self.pyramid + 1):
            factor = 2**level
            grid = (max(1, h // factor), max(1, w // factor))
            coarse = torch.randn(1, c, *grid, generator=g)
            row = row + self.discount**level * F.interpolate(coarse, (h, w), mode="bilinear", align_corners=False)[0]
            if grid == (1, 1):
                break
        if self.pyramid:
            row = row / row.std()
        return row + self.offset * torch.randn(c, 1, 1, generator=g) if self.offset else row

    def added(self, noise: Tensor, slots: Sequence[int], seed: int, step: int) -> Tensor:
        """What is mixed with the picture, where it is not what is to be predicted."""
        if not self.perturbation:
            return noise
        more = [torch.randn(noise.shape[1:], generator=randomness.generator(seed, "perturbation", step, slot)) for slot in slots]
        return noise + self.perturbation * torch.stack(more)
