"""Adapter files on the networks of a base: low-rank ones beside the weights, all others added to them."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from finetune.adapters.layouts import Place, magnitude
from finetune.adapters.read import Adapter
from finetune.adapters.weights import Weights
from finetune.errors import DataError
from finetune.families.load import Family


def to_text_encoders(family: Family, adapters: Sequence[tuple[Adapter, float]]) -> None:
    """Adds what the files hold for the text encoders to their weights, which are fp32."""
    for adapter, weight in adapters:
        for (part, module), w in adapter.modules.items():
            if part.startswith("text_encoder"):
                merge(layer(family.parts.load(part), module), w, weight)


def to_denoiser(family: Family, pipeline: Any, adapters: Sequence[tuple[Adapter, float]]) -> None:
    """Loads the files' denoiser parts into a pipeline, each with its weight."""
    denoiser, loaded = family.spec.denoiser, {}
    logging.getLogger("diffusers.loaders").setLevel(logging.ERROR)
    for i, (adapter, weight) in enumerate(adapters):
        own = {m: w for (part, m), w in adapter.on(denoiser).items() if part == denoiser}
        beside = {m: w for m, w in own.items() if w.peft}
        for module, w in own.items():
            if module not in beside:
                merge(layer(getattr(pipeline, denoiser), module), w, weight)
        if beside:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")  # several adapters are meant
                pipeline.load_lora_weights(state(beside, denoiser), adapter_name=f"adapter-{i}")
            loaded[f"adapter-{i}"] = weight
    if loaded:
        pipeline.set_adapters(list(loaded), list(loaded.values()))


def state(modules: Mapping[str, Weights], part: str) -> dict[str, torch.Tensor]:
    """LoRA modules under the keys that diffusers takes from a dictionary, with the strength folded in."""
    out: dict[str, torch.Tensor] = {}
    for module, w in modules.items():
        down, up = w.pair()
        out |= {f"{part}.{module}.lora_A.weight": down, f"{part}.{module}.lora_B.weight": up}
        if (rows := w.rows()) is not None:
            out[f"{part}.{module}.lora_magnitude_vector"] = magnitude(rows, up)
    return out


def layer(net: nn.Module, module: str) -> nn.Module:
    """A layer by its name; newer versions of transformers leave CLIP's `text_model.` out."""
    for name in (module, module.removeprefix("text_model.")):
        try:
            return net.get_submodule(name)
        except AttributeError:
            continue
    raise DataError(f"no layer {module} in {type(net).__name__}")


@torch.no_grad()
def merge(target: nn.Module, w: Weights, weight: float) -> None:
    """Adds `weight` times the change to the layer's own weight, computed in fp32."""
    own: Any = target
    own.weight.copy_((own.weight.float() + weight * w.change(own.weight).to(own.weight.device)).to(own.weight.dtype))
    if "diff_b" in w.tensors and own.bias is not None:
        own.bias.add_(weight * w.tensors["diff_b"].to(own.bias))


def misfit(family: Family, modules: Mapping[Place, Weights]) -> str | None:
    """The first module that the base has no layer for, or one of another size; None if all fit."""
    nets: dict[str, dict[str, tuple[int, ...]]] = {}
    for (part, module), w in modules.items():
        if part not in nets:
            if part not in family.spec.parts:
                return f"has no {part}"
            net = family.parts.skeleton(part)
            weights = ((n, getattr(m, "weight", None)) for n, m in net.named_modules())
            nets[part] = {n.removeprefix("text_model."): tuple(w.shape) for n, w in weights if w is not None}
        shape = nets[part].get(module.removeprefix("text_model."))
        if shape is None:
            return f"has no layer for {part}.{module}"
        size = w.size
        if (size[0] and size[0] != shape[0]) or (size[1] and len(shape) > 1 and size[1] != shape[1]):
            return f"has another width at {part}.{module} ({shape[0]}x{shape[1] if len(shape) > 1 else 1}, not {size[0]}x{size[1]})"
    return None
