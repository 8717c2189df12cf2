"""A whole Stable Diffusion 1, 2 or XL model in the original single-file layout: diffusers' names mapped back, key by key."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from finetune.families.source import Source

State = Mapping[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_key(key: str, resnets: int, attentive: set[int]) -> str:
    """For down blocks of `resnets` resnets each, and one more on the way up; `attentive` are the up blocks that have attention."""
    key = re.sub(r"^time_embedding\.linear_([12])", lambda m: f"time_embed.{2 * (int(m[1]) - 1)}", key)
    key = re.sub(r"^add_embedding\.linear_([12])", lambda m: f"label_emb.0.{2 * (int(m[1]) - 1)}", key)
    key = re.sub(r"^conv_in", "input_blocks.0.0", key)
    key = re.sub(r"^conv_norm_out", "out.0", key)
    key = re.sub(r"^conv_out", "out.2", key)
    per = resnets + 1
    key = re.sub(r"^down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"input_blocks.{1 + int(m[1]) * per + int(m[2])}.0", key)
    key = re.sub(r"^down_blocks\.(\d)\.attentions\.(\d)", lambda m: f"input_blocks.{1 + int(m[1]) * per + int(m[2])}.1", key)
    key = re.sub(r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{(int(m[1]) + 1) * per}.0.op", key)
    key = re.sub(r"^mid_block\.resnets\.([01])", lambda m: f"middle_block.{2 * int(m[1])}", key)
    key = re.sub(r"^mid_block\.attentions\.0", "middle_block.1", key)
    key = re.sub(r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{int(m[1]) * per + int(m[2])}.0", key)
    key = re.sub(r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{int(m[1]) * per + int(m[2])}.1", key)
    key = re.sub(
        r"^up_blocks\.(\d)\.upsamplers\.0\.conv",
        lambda m: f"output_blocks.{int(m[1]) * per + resnets}.{2 if int(m[1]) in attentive else 1}.conv",
        key,
    )
    if re.match(r"(input_blocks|middle_block|output_blocks)", key) and "transformer_blocks" not in key:
        for ours, theirs in RESNET.items():
            key = re.sub(rf"\.{ours}\.", f".{theirs}.", key)
    return f"model.diffusion_model.{key}"


def unet(state: State) -> dict[str, Tensor]:
    blocks = [re.match(r"down_blocks\.0\.resnets\.(\d)", k) for k in state]
    resnets = 1 + max(int(m[1]) for m in blocks if m)
    attentive = {int(m[1]) for k in state if (m := re.match(r"up_blocks\.(\d)\.attentions", k))}
    return {unet_key(k, resnets, attentive): t for k, t in state.items()}


def vae_key(key: str, blocks: int) -> str:
    """For an autoencoder of `blocks` levels, which the original counts from the other end on the way up."""
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.([01])", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    for ours, theirs in VAE_ATTENTION.items():
        key = key.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    return f"first_stage_model.{key}"


def vae(state: State) -> dict[str, Tensor]:
    """The attention's projections are convolutions in the original."""
    blocks = 1 + max(int(m[1]) for k in state if (m := re.match(r"encoder\.down_blocks\.(\d)", k)))
    square = {k for k, t in state.items() if "mid_block.attentions" in k and t.ndim == 2}
    return {vae_key(k, blocks): t[:, :, None, None] if k in square else t for k, t in state.items()}


def prefixed(state: State) -> dict[str, Tensor]:
    """CLIP's names with the `text_model.` that newer versions of transformers leave out."""
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not key.endswith("position_ids"):
            named = key.startswith(("text_model.", "text_projection"))
            out[key if named else f"text_model.{key}"] = tensor
    return out


def open_clip(state: State) -> dict[str, Tensor]:
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


def second(state: State) -> dict[str, Tensor]:
    """Stable Diffusion 2's text encoder: the original has one more layer, which it does not use, and a projection. Both are filled in."""
    last = max(int(m[1]) for k in state if (m := re.match(r"text_model\.encoder\.layers\.(\d+)", k)))
    more = {k.replace(f"layers.{last}.", f"layers.{last + 1}."): t.clone() for k, t in state.items() if f"layers.{last}." in k}
    width = state["text_model.final_layer_norm.weight"].shape[0]
    return open_clip({**state, **more}) | {"text_projection": torch.eye(width), "logit_scale": torch.tensor(4.6052)}


def whole_file(source: Source, parts: Mapping[str, State]) -> dict[str, Tensor]:
    """The file's tensors, and the keys that readers know its base by, which have no value: `v_pred`, `ztsnr`."""
    spec, schedule = source.spec, source.config("scheduler")
    tensors = single(parts, openclip=spec.edition(source).version in spec.names.kohya_v2)  # version 2's text encoder is OpenCLIP's
    marks = {"v_pred": schedule.get("prediction_type") == "v_prediction", "ztsnr": bool(schedule.get("rescale_betas_zero_snr"))}
    return tensors | {mark: torch.zeros(0) for mark, holds in marks.items() if holds}


def single(parts: Mapping[str, State], openclip: bool) -> dict[str, Tensor]:
    """The whole file's tensors; `parts` are state dicts by diffusers' folder, `openclip` is whether the only text encoder is OpenCLIP's."""
    out = unet(parts["unet"]) | vae(parts["vae"])
    if "text_encoder_2" in parts:
        text_tensors = {f"conditioner.embedders.0.transformer.{k}": t for k, t in prefixed(parts["text_encoder"]).items()}
        text_tensors |= {f"conditioner.embedders.1.model.{k}": t for k, t in open_clip(prefixed(parts["text_encoder_2"])).items()}
    elif openclip:
        text_tensors = {f"cond_stage_model.model.{k}": t for k, t in second(prefixed(parts["text_encoder"])).items()}
    else:
        text_tensors = {f"cond_stage_model.transformer.{k}": t for k, t in prefixed(parts["text_encoder"]).items()}
    return {k: t.contiguous() for k, t in (out | text_tensors).items()}
