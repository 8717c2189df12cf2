"""Tiny random pipelines, built in code from the real classes, and small folders of pictures."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = ["red", "blue", "green", "disc", "square", "a", "of", "tok", "picture"]


def tokenizer(window: int = 12) -> CLIPTokenizer:
    letters = [chr(c) for c in range(33, 127)]
    entries = letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(entries)}, merges=[], model_max_length=window)


def stable_diffusion(folder: Path, prediction_type: str = "epsilon", window: int = 12) -> Path:
    """A Stable Diffusion pipeline of about 100,000 parameters, 16x16 pixels and 8x8 latents, saved in `folder`."""
    torch.manual_seed(0)
    words = tokenizer(window)
    size = len(words)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        sample_size=16, block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=window,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=words, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def picture(seed: int, side: int = 20) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (side, side + 4, 3), dtype=np.uint8))


def folder(root: Path, count: int = 7) -> Path:
    """`count` pictures with a caption each."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i).save(root / f"{i:02d}.png")
        (root / f"{i:02d}.txt").write_text(f"{WORDS[i % 3]} disc", encoding="utf-8")
    return root
