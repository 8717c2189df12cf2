"""What families share whose denoiser is a U-Net: the training noise of a discrete schedule, and one call of the network."""

from typing import Any

import torch
from diffusers import DDPMScheduler

from finetune.families.source import Source
from finetune.families.spec import pixels_per_latent
from finetune.objectives.diffusion import Schedule


def ddpm(source: Source) -> Schedule:
    """From the model's own config, built as DDPM whatever sampler it names: an Euler scheduler's noise is another parametrisation."""
    with source.reading("scheduler"):
        scheduler = DDPMScheduler.from_config(source.config("scheduler"))
        kept = scheduler.alphas_cumprod
        if kept.ndim != 1 or not ((kept >= 0) & (kept < 1)).all():
            raise ValueError("its betas are no noise schedule")
    return Schedule(kept, scheduler.config.prediction_type)


def unet_example(source: Source, side: int, window: int, device: str) -> dict[str, Any]:
    """Arguments of one call on a picture of `side` pixels and a text of `window` tokens."""
    config, latent = source.config("unet"), side // pixels_per_latent(source)
    return {
        "sample": torch.zeros(1, config["in_channels"], latent, latent, device=device),
        "timestep": torch.zeros(1, dtype=torch.int64, device=device),
        "encoder_hidden_states": torch.zeros(1, window, config["cross_attention_dim"], device=device),
    }
