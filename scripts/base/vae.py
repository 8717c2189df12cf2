"""The embedded base's autoencoder: AutoencoderKL, 64x64 pixels to 16x16x4 latents, 0.3 M parameters."""

import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import SIZE, emojis, pixels
from diffusers import AutoencoderKL

SEED, STEPS, BATCH, LR, KL = 11, 2400, 16, 2e-3, 0.01


def training_pixels(node_modules: Path) -> torch.Tensor:
    """[N, 3, 64, 64]: every style of every emoji that is not held out (the autoencoder learns shapes, not names)."""
    seen = [e for e in emojis(node_modules) if not e.held_out]
    return torch.from_numpy(pixels([p for e in seen for p in e.pictures.values()]))


def augment(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Flips, shifts, channel swaps, contrast and smooth shading: latents must also carry pictures that are not flat emoji."""
    out = []
    for image in x:
        if torch.rand((), generator=g) < 0.5:
            image = image.flip(-1)
        dx, dy = torch.randint(-8, 9, (2,), generator=g).tolist()
        image = F.pad(image, (8, 8, 8, 8), value=1.0)[:, 8 + dy : 8 + dy + SIZE, 8 + dx : 8 + dx + SIZE]
        if torch.rand((), generator=g) < 0.3:
            image = image[torch.randperm(3, generator=g)]
        if torch.rand((), generator=g) < 0.5:
            shade = F.interpolate(torch.rand(1, 3, 4, 4, generator=g), SIZE, mode="bicubic")[0].clamp(0, 1)
            image = (image + 1) * (0.4 + 0.6 * shade) - 1
        out.append(image)
    return torch.stack(out)


def build() -> AutoencoderKL:
    torch.manual_seed(SEED)
    return AutoencoderKL(
        sample_size=SIZE, block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip


def loss_fn(vae: AutoencoderKL, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L1 + 0.5 L1 of image gradients + KL; also the pixel MSE."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample.float()
    edges = (y.diff(dim=-1) - x.diff(dim=-1)).abs().mean() + (y.diff(dim=-2) - x.diff(dim=-2)).abs().mean()
    kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return (y - x).abs().mean() + 0.5 * edges + KL * kl, (y - x).square().mean()


def train(node_modules: Path, out: Path, steps: int = STEPS) -> None:
    data, vae = training_pixels(node_modules), build()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LR, fused=True)
    g, began = torch.Generator().manual_seed(SEED), time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        x = augment(data[torch.randint(len(data), (BATCH,), generator=g)], g)
        loss, mse = loss_fn(vae, x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"vae step {step} loss {loss.item():.4f} mse {mse.item():.4f} seconds {time.time() - began:.0f}", flush=True)
    vae.eval()
    narrow(vae)
    latents = encode(vae, data)
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    vae.save_pretrained(out / "vae")
    print(f"vae done: scaling_factor {vae.config.scaling_factor}, mse {reconstruction_mse(vae, data):.4f}", flush=True)


@torch.no_grad()
def narrow(vae: AutoencoderKL) -> None:
    """Makes the posterior a point: the denoiser learns from its means, and whoever fine-tunes it must draw the same.

    A channel that the decoder does not need keeps the prior's width (here 1.25 in the denoiser's units). The denoiser knows its mean
    alone; a LoRA that was trained on draws from it had a loss of 0.6 where 0.1 was right, and learned that noise.
    """
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = -30  # the log of the variance, clamped there by the posterior too


@torch.no_grad()
def encode(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """Posterior means, [N, 4, 16, 16], not scaled."""
    return torch.cat([vae.encode(b).latent_dist.mean for b in x.split(128)])


@torch.no_grad()
def reconstruction_mse(vae: AutoencoderKL, x: torch.Tensor) -> float:
    return float(np.mean([(vae.decode(vae.encode(b).latent_dist.mean).sample - b).square().mean().item() for b in x.split(64)]))
