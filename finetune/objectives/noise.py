"""The noise that a picture is mixed with, and changes of it; drawn on the CPU."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.draws import Draws
from finetune.tensors import to_device


@dataclass(frozen=True)
class Noise:
    """Plain where nothing is given.

    `offset`: a random constant for each channel, so that brightness is learned (Guttenberg 2023, "Diffusion with offset noise").
    `pyramid`: noise of ever coarser grids is added, each `discount` times the one before, and all brought to unit variance
    (Whitaker 2023, "Multi-resolution noise"). `perturbation`: the network sees that much more noise than it is to predict
    (Ning et al. 2023, arXiv:2301.11706).
    """

    offset: float = 0.0
    pyramid: int = 0  # coarser grids
    discount: float = 0.8
    perturbation: float = 0.0

    def __call__(self, draws: Draws, x_0: Tensor) -> tuple[Tensor, Tensor]:
        """What is to be predicted, and what is mixed with the picture; each shaped as `x_0` [B, C, H, W] and on its device."""
        shape = x_0.shape[1:]
        noise = draws.normal("noise", shape)
        if self.offset or self.pyramid:
            noise = torch.stack([self._shaped(row, draws.generator("noise shape", i)) for i, row in enumerate(noise)])
        target = to_device(noise, x_0.device)
        if not self.perturbation:
            return target, target
        return target, to_device(noise + self.perturbation * draws.normal("perturbation", shape), x_0.device)

    def _shaped(self, row: Tensor, g: torch.Generator) -> Tensor:
        c, h, w = row.shape
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


PLAIN = Noise()
