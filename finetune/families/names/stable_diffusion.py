"""Names in files of Stable Diffusion 1 and 2. Torch-free."""

from collections.abc import Sequence

from finetune.families.names import DENOISER, Layer, Spelling, unet
from finetune.families.names.text_encoders import clip

_BLOCKS = unet.blocks(4, attentive=(1, 2, 3))  # the innermost level has none


def original(module: str) -> str | None:
    """diffusers' name of a module -> the original one."""
    return unet.original(module, _BLOCKS)


def recognises(layers: Sequence[Layer]) -> bool:
    """By what its cross-attention reads, version 1's text or version 2's; by kohya's word where a file changes the text encoder alone."""
    if not unet.alike(layers) or any(layer.part == "text_encoder_2" for layer in layers):
        return False
    if all(layer.part != DENOISER for layer in layers):
        return any(layer.label == "lora_te" for layer in layers)
    return unet.text_width(layers) in (768, 1024)


NAMES = unet.names(
    text={"text_encoder": clip("emb_params", "lora_te", "clip_l", "clip_h")},
    original=original,
    recognises=recognises,
    lora=Spelling("lora_unet", original=False),
    lycoris=Spelling("lora_unet", original=False),
    known=("sd15", "sd21"),
    tags=("stable-diffusion", "stable-diffusion-diffusers"),
    codes={"adapter": "diffusers", "embedding": unet.STABILITY, "model": unet.STABILITY},
)
