"""Names in files of Stable Diffusion XL. Torch-free."""

import re
from collections.abc import Sequence

from finetune.families.names import DENOISER, Layer, Spelling, unet
from finetune.families.names.text_encoders import clip

_BLOCKS = unet.blocks(3)
_DEEP = re.compile(r"\.transformer_blocks\.[2-9]\.")  # which only its U-Net has, of ten


def original(module: str) -> str | None:
    """diffusers' name of a module -> the original one, as other tools expect them."""
    return unet.original(module, _BLOCKS)


def recognises(layers: Sequence[Layer]) -> bool:
    """By its second text encoder, or what its cross-attention reads, or how deep its blocks are."""
    if not unet.alike(layers):
        return False
    second = [layer for layer in layers if layer.part == "text_encoder_2"]
    if second:
        return any(NAMES.has(layer.part, layer.module) for layer in second)
    if width := unet.text_width(layers):
        return width == 2048
    return any(layer.part == DENOISER and _DEEP.search(layer.module) for layer in layers)


NAMES = unet.names(
    text={"text_encoder": clip("clip_l", "lora_te1", "clip_l"), "text_encoder_2": clip("clip_g", "lora_te2", "clip_g")},
    original=original,
    recognises=recognises,
    lora=Spelling("lora_unet", original=True),
    lycoris=Spelling("lora_unet", original=True),
    known=("sdxl",),
    tags=("stable-diffusion-xl", "stable-diffusion-xl-diffusers"),
    codes={"adapter": unet.STABILITY, "embedding": unet.STABILITY, "model": unet.STABILITY},
)
