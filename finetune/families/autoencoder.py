"""KL autoencoders: pixels to latents in the denoiser's units, and back. Always fp32: half precision turns pictures black."""

from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor


def _affine(vae: Any) -> tuple[Tensor | float, Tensor | float]:
    """(shift, scale) with latents = (z - shift) * scale; per channel where the autoencoder has its latents' mean and deviation."""
    config = vae.config
    scale, mean, std = config.scaling_factor, getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        shape, device = (1, -1, 1, 1), vae.device
        return torch.tensor(mean, device=device).view(shape), scale / torch.tensor(std, device=device).view(shape)
    return getattr(config, "shift_factor", None) or 0.0, scale


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 3, H, W] in [-1, 1] -> posterior mean and deviation [B, C, H/f, W/f]."""
    shift, scale = _affine(vae)
    with torch.autocast(vae.device.type, enabled=False):
        posterior = vae.encode(pixels.to(vae.device, torch.float32)).latent_dist
    return (posterior.mean - shift) * scale, posterior.std * scale


def unclamped(vae: Any, latents: Tensor) -> Tensor:
    """[B, C, H/f, W/f] -> pixels [B, 3, H, W], about [-1, 1], in the autoencoder's precision and on its device; with gradients."""
    shift, scale = _affine(vae)
    with nullcontext() if vae.device.type == "meta" else torch.autocast(vae.device.type, enabled=False):
        return cast(Tensor, vae.decode(latents.to(vae.device, vae.dtype) / scale + shift).sample)


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """[B, C, H/f, W/f] -> pixels [B, 3, H, W] in [-1, 1], fp32 on the CPU."""
    return unclamped(vae, latents).clamp(-1, 1).cpu()
