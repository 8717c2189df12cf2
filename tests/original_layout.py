"""Tiny pipelines in the original single-file layout: diffusers' names mapped back, key by key."""

import re
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_key(key: str, resnets: int = 1) -> str:
    """For down blocks of `resnets` resnets each."""
    key = re.sub(r"^time_embedding\.linear_([12])", lambda m: f"time_embed.{2 * (int(m[1]) - 1)}", key)
    key = re.sub(r"^conv_in", "input_blocks.0.0", key)
    key = re.sub(r"^conv_norm_out", "out.0", key)
    key = re.sub(r"^conv_out", "out.2", key)
    down, up = resnets + 1, resnets + 1
    key = re.sub(r"^down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"input_blocks.{1 + int(m[1]) * down + int(m[2])}.0", key)
    key = re.sub(r"^down_blocks\.(\d)\.attentions\.(\d)", lambda m: f"input_blocks.{1 + int(m[1]) * down + int(m[2])}.1", key)
    key = re.sub(r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{(int(m[1]) + 1) * down}.0.op", key)
    key = re.sub(r"^mid_block\.resnets\.([01])", lambda m: f"middle_block.{2 * int(m[1])}", key)
    key = re.sub(r"^mid_block\.attentions\.0", "middle_block.1", key)
    key = re.sub(r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{int(m[1]) * up + int(m[2])}.0", key)
    key = re.sub(r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{int(m[1]) * up + int(m[2])}.1", key)
    key = re.sub(r"^up_blocks\.(\d)\.upsamplers\.0\.conv", lambda m: f"output_blocks.{int(m[1]) * up + resnets}.2.conv", key)
    if re.match(r"(input_blocks|middle_block|output_blocks)", key) and "transformer_blocks" not in key:
        for ours, theirs in RESNET.items():
            key = re.sub(rf"\.{ours}\.", f".{theirs}.", key)
    return f"model.diffusion_model.{key}"


def vae_key(key: str, blocks: int = 2) -> str:
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.([01])", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    for ours, theirs in VAE_ATTENTION.items():
        key = key.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    return f"first_stage_model.{key}"


def write(base: Path, path: Path, second: bool = False) -> Path:
    """Stable Diffusion 1's layout, or the `second` version's, whose text encoder is OpenCLIP's."""
    pipe = StableDiffusionPipeline.from_pretrained(base)
    state: dict[str, Tensor] = {unet_key(k): v for k, v in pipe.unet.state_dict().items()}
    for key, value in pipe.vae.state_dict().items():
        square = "mid_block.attentions" in key and value.ndim == 2
        state[vae_key(key)] = value[:, :, None, None] if square else value
    text = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in pipe.text_encoder.state_dict().items()}
    if second:
        text = open_clip(text) | {"text_projection": torch.eye(pipe.text_encoder.config.hidden_size)}
    state |= {f"cond_stage_model.{'model' if second else 'transformer'}.{k}": v for k, v in text.items()}
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.", "text_model.encoder.layers.": "transformer.resblocks.", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names: queries, keys and values in one matrix, the projection transposed."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        for ours, theirs in OPEN_CLIP.items():
            name = name.replace(ours, theirs)
        if key == "text_projection.weight":
            out["text_projection"] = value.T
        elif ".self_attn.q_proj." in name:
            three = [state[key.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            out[name.replace(".self_attn.q_proj.", ".attn.in_proj_")] = torch.cat(three)
        elif ".self_attn." not in name:
            out[name] = value
    return out


def write_xl(base: Path, path: Path) -> Path:
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    state = {unet_key(k, resnets=2): v for k, v in pipe.unet.state_dict().items()}
    for theirs, ours in (("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2")):
        state = {k.replace(ours, theirs): v for k, v in state.items()}
    for key, value in pipe.vae.state_dict().items():
        square = "mid_block.attentions" in key and value.ndim == 2
        state[vae_key(key)] = value[:, :, None, None] if square else value
    for key, value in pipe.text_encoder.state_dict().items():
        name = key if key.startswith("text_model.") else f"text_model.{key}"
        state[f"conditioner.embedders.0.transformer.{name}"] = value
    second = {
        k if k.startswith(("text_model.", "text_projection")) else f"text_model.{k}": v for k, v in pipe.text_encoder_2.state_dict().items()
    }
    state |= {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip(second).items()}
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path
