"""A whole Stable Diffusion 1, 2 or XL model in the original single-file layout: diffusers' names mapped back, key by key."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from finetune.families import autoencoder_file
from finetune.families.names import TextNames
from finetune.families.names.unet import blocks, original
from finetune.families.source import Source

State = Mapping[str, Tensor]

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


def _highest(state: State, pattern: str) -> int:
    """Of the numbers that a pattern finds in the keys."""
    return max(int(m[1]) for key in state if (m := re.match(pattern, key)))


def unet(state: State) -> dict[str, Tensor]:
    levels = _highest(state, r"down_blocks\.(\d+)") + 1
    resnets = _highest(state, r"down_blocks\.0\.resnets\.(\d+)") + 1
    attentive = {int(m[1]) for key in state if (m := re.match(r"up_blocks\.(\d+)\.attentions", key))}
    heads = blocks(levels, resnets, attentive)
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        out[f"model.diffusion_model.{original(module, heads) or module}.{leaf}"] = tensor
    return out


def vae(state: State) -> dict[str, Tensor]:
    return {f"first_stage_model.{key}": tensor for key, tensor in autoencoder_file.original(state).items()}


def completed(names: TextNames, state: State) -> dict[str, Tensor]:
    """A text encoder's weights under their whole names, whichever version of transformers they are from."""
    return {names.completed(key): tensor for key, tensor in state.items() if not key.endswith("position_ids")}


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
    last = _highest(state, r"text_model\.encoder\.layers\.(\d+)")
    more = {k.replace(f"layers.{last}.", f"layers.{last + 1}."): t.clone() for k, t in state.items() if f"layers.{last}." in k}
    width = state["text_model.final_layer_norm.weight"].shape[0]
    return open_clip({**state, **more}) | {"text_projection": torch.eye(width), "logit_scale": torch.tensor(4.6052)}


def whole_file(source: Source, parts: Mapping[str, State]) -> dict[str, Tensor]:
    """The file's tensors, and the keys that readers know its base by, which have no value: `v_pred`, `ztsnr`."""
    spec, schedule = source.spec, source.config("scheduler")
    tensors = single(parts, spec.names.text, openclip=spec.edition(source).v2)
    marks = {"v_pred": schedule.get("prediction_type") == "v_prediction", "ztsnr": bool(schedule.get("rescale_betas_zero_snr"))}
    return tensors | {mark: torch.zeros(0) for mark, holds in marks.items() if holds}


def single(parts: Mapping[str, State], text: Mapping[str, TextNames], openclip: bool) -> dict[str, Tensor]:
    """The whole file's tensors; `parts` are state dicts by diffusers' folder, `text` what files call the text encoders, `openclip` is
    whether the only one is OpenCLIP's."""
    out = unet(parts["unet"]) | vae(parts["vae"])
    encoders = {part: completed(names, parts[part]) for part, names in text.items()}
    if "text_encoder_2" in encoders:
        text_tensors = {f"conditioner.embedders.0.transformer.{k}": t for k, t in encoders["text_encoder"].items()}
        text_tensors |= {f"conditioner.embedders.1.model.{k}": t for k, t in open_clip(encoders["text_encoder_2"]).items()}
    elif openclip:
        text_tensors = {f"cond_stage_model.model.{k}": t for k, t in second(encoders["text_encoder"]).items()}
    else:
        text_tensors = {f"cond_stage_model.transformer.{k}": t for k, t in encoders["text_encoder"].items()}
    return {k: t.contiguous() for k, t in (out | text_tensors).items()}
