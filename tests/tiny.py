"""Tiny random pipelines, built in code from the real classes, and small folders of pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from finetune.config.precedence import merge_settings
from finetune.data.inputs import ALPHA, LOSS_MASK, PICTURE, Input
from finetune.data.sample import Sample

WORDS = ["red", "blue", "green", "disc", "square", "a", "of", "tok", "picture"]
WINDOW = 12  # tokens


def tokenizer(window: int = WINDOW) -> CLIPTokenizer:
    letters = [chr(c) for c in range(33, 127)]
    entries = letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(entries)}, merges=[], model_max_length=window)


def t5_tokenizer() -> T5TokenizerFast:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(chr(c) for c in range(33, 127))]
    return T5TokenizerFast(vocab=[(p, 0.0) for p in pieces], extra_ids=0, model_max_length=WINDOW)


def clip(width: int = 16, window: int = WINDOW, **more: Any) -> CLIPTextConfig:
    size = len(tokenizer())
    return CLIPTextConfig(
        vocab_size=size, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=window, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1, **more,
    )  # fmt: skip


def vae(channels: int = 4, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=16, block_out_channels=(8, 8), layers_per_block=1, latent_channels=channels, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **more,
    )  # fmt: skip


def betas(**more: Any) -> dict[str, Any]:
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1} | more


def stable_diffusion(folder: Path, prediction_type: str = "epsilon", window: int = WINDOW) -> Path:
    """About 100,000 parameters, 16x16 pixels and 8x8 latents."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    image = vae(scaling_factor=0.5)
    StableDiffusionPipeline(
        vae=image, text_encoder=CLIPTextModel(clip(window=window)), tokenizer=tokenizer(window), unet=unet,
        scheduler=DDPMScheduler(**betas(clip_sample=False, prediction_type=prediction_type)), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def stable_diffusion_v(folder: Path) -> Path:
    return stable_diffusion(folder, "v_prediction")


def stable_diffusion_xl(folder: Path) -> Path:
    """Three levels as in the real one, so that the original block names mean the same."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16, 16), layers_per_block=2, cross_attention_dim=40,
        transformer_layers_per_block=(1, 1, 2), attention_head_dim=(1, 2, 2), norm_num_groups=4, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=24 + 6 * 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    second = CLIPTextModelWithProjection(clip(24, projection_dim=24, hidden_act="gelu"))
    StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.4), text_encoder=CLIPTextModel(clip(16)), text_encoder_2=second, tokenizer=tokenizer(),
        tokenizer_2=tokenizer(), unet=unet, scheduler=EulerDiscreteScheduler(**betas(timestep_spacing="leading")),
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def flux(folder: Path, guided: bool = True) -> Path:
    torch.manual_seed(0)
    size = len(t5_tokenizer())
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=guided, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    t5 = T5Config(vocab_size=size, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    shifting = {"use_dynamic_shifting": True, "shift": 3.0} if guided else {"shift": 1.0}
    FluxPipeline(
        vae=vae(scaling_factor=0.4, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(clip()), tokenizer=tokenizer(), text_encoder_2=T5EncoderModel(t5), tokenizer_2=t5_tokenizer(),
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**shifting),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def flux_schnell(folder: Path) -> Path:
    return flux(folder, guided=False)


def repainting(base: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """The same base with nine channels, the last five of which change something from the first."""

    def make(folder: Path) -> Path:
        return widened(base(folder), lambda weight: torch.randn(weight.shape[0], 5, *weight.shape[2:]) * 0.1)

    return make


def widened(folder: Path, channels: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A base whose U-Net reads a mask and the picture without it too: `channels` makes the new ones of the first layer's weight."""
    torch.manual_seed(1)
    place, index = folder / "unet", folder / "model_index.json"
    config = json.loads((place / "config.json").read_text())
    weights = load_file(place / "diffusion_pytorch_model.safetensors")
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, channels(first).to(first)], 1)
    save_file(weights, place / "diffusion_pytorch_model.safetensors")
    (place / "config.json").write_text(json.dumps(config | {"in_channels": 9}))
    pipeline = json.loads(index.read_text())
    pipeline["_class_name"] = pipeline["_class_name"].replace("Pipeline", "InpaintPipeline")
    index.write_text(json.dumps(pipeline))
    return folder


def stable_diffusion_3(folder: Path, t5: bool = True, **more: Any) -> Path:
    """As 3.5 medium: it attends twice in its first block. `t5=False`: without that encoder, as it is kept by many."""
    torch.manual_seed(0)
    size = len(t5_tokenizer())
    transformer = SD3Transformer2DModel(**{
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 48, "caption_projection_dim": 16, "pooled_projection_dim": 16 + 24,
        "pos_embed_max_size": 24, "dual_attention_layers": (0,), "qk_norm": "rms_norm", **more,
    })  # fmt: skip
    first = CLIPTextModelWithProjection(clip(16, projection_dim=16))
    torch.nn.init.eye_(first.text_projection.weight)  # as in the real ones: the original model has no such projection
    third = T5Config(vocab_size=size, d_model=48, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    StableDiffusion3Pipeline(
        vae=vae(scaling_factor=0.4, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=first, tokenizer=tokenizer(), tokenizer_2=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip(24, projection_dim=24, hidden_act="gelu")),
        text_encoder_3=T5EncoderModel(third) if t5 else None, tokenizer_3=t5_tokenizer() if t5 else None,
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)  # fmt: skip
    return folder


PIPELINES: dict[str, Callable[[Path], Path]] = {
    "sd": stable_diffusion, "sd-v": stable_diffusion_v, "sdxl": stable_diffusion_xl, "flux": flux, "flux-schnell": flux_schnell,
    "sd3": stable_diffusion_3,
}  # fmt: skip
# Of the same families, with the same layers for adapters: tests/test_inpainting.py has what differs.
REPAINTING: dict[str, Callable[[Path], Path]] = {
    "sd-inpainting": repainting(stable_diffusion), "sdxl-inpainting": repainting(stable_diffusion_xl),
}  # fmt: skip


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


def sample(name: str, content: str, captions: tuple[str, ...] = ("x",), masked: bool = False, **more: Any) -> Sample:
    """A picture that is not read."""
    inputs = {PICTURE: Input(content, bytes)} | ({LOSS_MASK: Input(ALPHA)} if masked else {})
    return Sample(name, inputs, captions, **more)


def job(base: Path, imgs: Path, out: Path, **sections: Any) -> dict[str, Any]:
    """The settings of a small job with alpha different from rank."""
    small = {
        "model": {"base": str(base)},
        "data": {"path": str(imgs)},
        "method": {"rank": 4, "alpha": 2} if sections.get("method", {}).get("kind", "lora") == "lora" else {},
        "optim": {"steps": 6, "batch": 2, "lr": 1e-3},
        "run": {"out": str(out), "save_dtype": "fp32"},
    }
    return merge_settings(small, sections)
