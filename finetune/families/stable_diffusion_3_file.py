"""A whole Stable Diffusion 3 or 3.5 model in the original single-file layout: diffusers' names mapped back, key by key."""

from collections.abc import Mapping

import torch
from torch import Tensor

from finetune.families.names.stable_diffusion_3 import NAMES
from finetune.families.source import Source
from finetune.families.unet_file import State, completed, vae

TIED = "encoder.embed_tokens.weight"  # T5's table of words under a second name, which the published files have too: 9.79 GB in fp16


def transformer(state: State) -> dict[str, Tensor]:
    """Fused where the original is, and with halves of rows in its order."""
    out: dict[str, Tensor] = {}
    sizes = {key.rpartition(".")[0]: tuple(tensor.shape) for key, tensor in state.items() if key.endswith(".weight")}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        original = NAMES.original(module)
        if original is None:  # the table of positions alone, which is no module's weight
            out[f"model.diffusion_model.{leaf}"] = tensor
            continue
        members = NAMES.members(original) or ()
        if module != members[0]:
            continue
        whole = torch.cat([state[f"{member}.{leaf}"] for member in members])
        size = sizes[module]
        turned = len(size) == 2 and NAMES.swapped(module, size[0], size[1])
        out[f"model.diffusion_model.{original}.{leaf}"] = whole.roll(len(whole) // 2, 0) if turned else whole
    return out


def as_one_file(source: Source, parts: Mapping[str, State]) -> dict[str, Tensor]:
    """The file's tensors; `parts` are state dicts by diffusers' folder. Text encoders keep the names of their library."""
    tensors = transformer(parts["transformer"]) | vae(parts["vae"])
    for part, names in source.spec.names.text.items():
        for key, tensor in completed(names, parts[part]).items():
            tensors[f"text_encoders.{names.comfy[0]}.transformer.{key}"] = tensor.clone() if key == TIED else tensor
    return {k: t.contiguous() for k, t in tensors.items()}
