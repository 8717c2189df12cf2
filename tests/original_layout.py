"""Tiny pipelines as single files in the original layout."""

from pathlib import Path

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

from finetune.families.names import stable_diffusion, stable_diffusion_xl
from finetune.families.unet_file import single


def write(base: Path, path: Path, second: bool = False) -> Path:
    """Stable Diffusion 1's layout, or the `second` version's, whose text encoder is OpenCLIP's."""
    pipe = StableDiffusionPipeline.from_pretrained(base)
    save_file(
        single({p: getattr(pipe, p).state_dict() for p in ("unet", "vae", "text_encoder")}, stable_diffusion.NAMES.text, second), path
    )
    return path


def write_xl(base: Path, path: Path) -> Path:
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    parts = {p: getattr(pipe, p).state_dict() for p in ("unet", "vae", "text_encoder", "text_encoder_2")}
    save_file(single(parts, stable_diffusion_xl.NAMES.text, False), path)
    return path
