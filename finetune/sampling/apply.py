"""Adapter files on the networks of a base: low-rank ones beside the weights, all others added to them."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from finetune.adapters import landing
from finetune.adapters.embedding import Embedding
from finetune.adapters.layouts import Place, diffusers
from finetune.adapters.read import AdapterFile
from finetune.adapters.weights import Weights
from finetune.errors import DataError
from finetune.families.family import Family
from finetune.families.names.text_encoders import bare
from finetune.methods import textual_inversion
from finetune.sampling.pipeline import Pipeline


class Target(Protocol):
    """A linear or convolution layer."""

    weight: Tensor
    bias: Tensor


OTHER = "choose its base with --base"


def needs_fp32(adapters: Sequence[AdapterFile]) -> bool:
    """Whether a file changes weights themselves: half-precision ones would round most of a small change away."""
    for adapter in adapters:
        for (part, _), weights in adapter.modules.items():
            if part.startswith("text_encoder") or not weights.peft:
                return True
    return False


def to_words(family: Family, embeddings: Sequence[Embedding]) -> None:
    """Adds the files' tokens to the family's words, and their rows to its text encoders.

    Raises:
        ConfigError: a token is a word already.
        DataError: rows of another width, or none for a text encoder.
    """
    if not embeddings:
        return
    spec, rows = family.spec, [e.of(family.spec.names.embedding_keys) for e in embeddings]
    for part in spec.text:
        encoder = family.parts.load(part)
        width = textual_inversion.words_of(encoder).weight.shape[1]
        for e, of_part in zip(embeddings, (by_part[part] for by_part in rows), strict=True):
            if of_part.shape[1] != width:
                raise DataError(f"{e.path}: rows of {of_part.shape[1]} numbers, and {family.source.id}'s {part} has {width}", OTHER)
        textual_inversion.attach(encoder, torch.cat([by_part[part] for by_part in rows]), family.words.size[part])
    for e in embeddings:
        family.words.add(e.token, e.vectors)


def to_text_encoders(family: Family, adapters: Sequence[tuple[AdapterFile, float]]) -> int:
    """Adds what the files hold for the text encoders to their weights; returns how many layers changed."""
    count = 0
    for adapter, weight in adapters:
        for (part, module), w in adapter.modules.items():
            if part.startswith("text_encoder"):
                merge(layer(family.parts.load(part), module), w, weight)
                count += 1
    return count


def to_denoiser(family: Family, pipeline: Pipeline, adapters: Sequence[tuple[AdapterFile, float]]) -> int:
    """Loads the files' denoiser parts into a pipeline, each with its weight; returns how many layers changed."""
    denoiser, loaded, count = family.spec.denoiser, {}, 0
    logging.getLogger("diffusers.loaders").setLevel(logging.ERROR)
    for i, (adapter, weight) in enumerate(adapters):
        net = getattr(pipeline, denoiser)
        modules = {m: w.shaped(layer(net, m).weight.shape) for (part, m), w in adapter.on(denoiser).items() if part == denoiser}
        beside = {m: w for m, w in modules.items() if w.peft}
        for module, w in modules.items():
            if module not in beside:
                merge(layer(net, module), w, weight)
                count += 1
        for kind in ("lora", "dora"):  # PEFT takes a file of the two for one of the second
            some = {(denoiser, m): fp32(w) for m, w in beside.items() if w.kind == kind}
            if not some:
                continue
            name = f"adapter-{i}-{kind}"
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")  # several adapters are meant
                pipeline.load_lora_weights(diffusers(some, family.spec.names), adapter_name=name)
            loaded[name] = weight
            count += sum(name in getattr(m, "lora_A", {}) for m in getattr(pipeline, denoiser).modules())
    if loaded:
        pipeline.set_adapters(list(loaded), list(loaded.values()))
    return count


def fp32(w: Weights) -> Weights:
    """So that folding the strength in rounds nothing before the network's own dtype does."""
    return replace(w, tensors={k: t.float() for k, t in w.tensors.items()})


def layer(net: nn.Module, module: str) -> Target:
    """A layer by its name; newer versions of transformers leave CLIP's `text_model.` out."""
    for name in (module, bare(module)):
        try:
            return cast(Target, net.get_submodule(name))
        except AttributeError:
            continue
    raise DataError(f"no layer {module} in {type(net).__name__}")


@torch.no_grad()
def merge(target: Target, w: Weights, weight: float) -> None:
    """Adds `weight` times the change to the layer's own weight and bias, computed in fp32."""
    target.weight.copy_((target.weight.float() + weight * w.change(target.weight)).to(target.weight.dtype))
    if "diff_b" in w.tensors:
        bias = w.tensors["diff_b"].to(target.bias.device, torch.float32)
        target.bias.copy_((target.bias.float() + weight * bias).to(target.bias.dtype))


def misfit(family: Family, modules: Mapping[Place, Weights]) -> str | None:
    """The first module that the base has no layer for, or one of another size; None if all fit."""
    return landing.shape_misfit(landing.shapes_of(family.parts), modules)
