"""What a U-Net reads beside noise to repaint a part of a picture: the mask, and what the autoencoder makes of the picture without it.

As `StableDiffusionInpaintPipeline` of diffusers has it: nine channels, of which the mask is the fifth.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.inputs import INPAINT_MASK, MASKED
from finetune.families.family import Base, Columns, Cond, Family
from finetune.tensors import to_device

BESIDE = "beside"  # in a condition: [B, 1 + C, h, w]


def without(pixels: Tensor, mask: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1], grey where `mask` [B, 1, H, W] is 1."""
    return pixels * (mask < 0.5)


def on_grid(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask [B, 1, H, W] on the latents' grid [B, 1, h, w]: each cell is what its first pixel is, as in pipelines."""
    return F.interpolate(mask, (height, width))


def condition(base: Base, columns: Columns) -> Cond:
    """What is read beside noise, on the device; nothing of a base that reads noise alone."""
    if INPAINT_MASK not in base.edition.reads:
        return {}
    beside = torch.cat([columns[INPAINT_MASK], columns[MASKED]], 1)
    return {BESIDE: base.cast(to_device(beside, base.device))}


def canvas(family: Family, pixels: Tensor, mask: Tensor) -> dict[str, Any]:
    """The pipeline's arguments for a picture [1, 3, H, W] in [-1, 1] that is repainted where `mask` [1, 1, H, W] is 1."""
    latents, _ = family.encode(without(pixels, mask))
    return {"image": pixels / 2 + 0.5, "mask_image": mask, "masked_image_latents": latents, "strength": 1.0}


def unet_input(x_t: Tensor, cond: Cond) -> Tensor:
    """What the U-Net is given for `x_t` [B, C, h, w]."""
    return torch.cat([x_t, cond[BESIDE]], 1) if BESIDE in cond else x_t
