"""Whether what a file holds has a place in a base: every layer by its name, its shape, and its bias."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from typing import NamedTuple

from torch import nn

from finetune.adapters import leaves
from finetune.adapters.layouts import Modules, Place
from finetune.adapters.weights import Weights
from finetune.families import catalogue
from finetune.families.components import Components
from finetune.families.names.text_encoders import bare


class Shape(NamedTuple):
    weight: tuple[int, ...]
    bias: tuple[int, ...] | None


Shapes = Callable[[str], Mapping[str, Shape] | None]  # a part's layers by their names without `text_model.`; None: there is no such part


def shapes(net: nn.Module) -> dict[str, Shape]:
    """The layers of a network that have a weight."""
    out = {}
    for name, layer in net.named_modules():
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if weight is not None:
            out[bare(name)] = Shape(tuple(weight.shape), None if bias is None else tuple(bias.shape))
    return out


def shapes_of(networks: Components) -> Shapes:
    """Those of a base, from its configs alone."""
    layers: dict[str, dict[str, Shape]] = {}

    def of(part: str) -> Mapping[str, Shape] | None:
        if part not in networks.kinds:
            return None
        if part not in layers:
            layers[part] = shapes(networks.skeleton(part))
        return layers[part]

    return of


def shape_misfit(of: Shapes, modules: Modules) -> str | None:
    """What the base lacks for the first module that does not fit it, in words; None if all fit."""
    for (part, module), w in modules.items():
        there = of(part)
        if there is None:
            return f"has no {part}"
        shape = there.get(bare(module))
        if shape is None:
            return f"has no layer for {part}.{module}"
        if "diff_b" in w.tensors and (shape.bias is None or shape.bias != tuple(w.tensors["diff_b"].shape)):
            there_is = "none" if shape.bias is None else list(shape.bias)
            return f"has another bias at {part}.{module} ({there_is}, not {list(w.tensors['diff_b'].shape)})"
        if not _fits(w, shape.weight):
            theirs = list(w.tensors["down"].shape[1:]) if "down" in w.tensors else w.size[1]
            return f"has another width at {part}.{module} ({list(shape.weight)}, not {w.size[0]} of {theirs})"
    return None


def weight_shape(of: Shapes, place: Place) -> tuple[int, ...]:
    """That of a module that has been found to fit."""
    layers = of(place[0])
    assert layers is not None  # noqa: S101  it fits
    return layers[bare(place[1])].weight


def _fits(w: Weights, shape: Sequence[int]) -> bool:
    tensors = {name: tuple(t.shape) for name, t in w.shaped(shape).tensors.items()}
    if w.size[0] not in (0, shape[0]) or not _norms_fit(tensors, shape):
        return False
    if w.kind in ("lora", "dora") and "mid" not in tensors:  # PEFT's layers take the shape of the layer's own weight, kernel and all
        return tensors["down"][1:] == tuple(shape[1:]) and len(tensors["up"]) == len(shape) and set(tensors["up"][2:]) <= {1}
    return leaves.numbers(tensors) in (0, prod(shape))


def _norms_fit(tensors: Mapping[str, Sequence[int]], shape: Sequence[int]) -> bool:
    allowed = {"rows": {shape[0]}, "dora": set(shape[:2]), "rescale": {1, shape[0]}}
    return all(prod(tensors[name]) in sizes for name, sizes in allowed.items() if name in tensors)


def known_base(family: str, modules: Modules) -> tuple[str, Shapes] | None:
    """The known base of a family whose widths a file has, with its shapes; None for a file of a model of another size.

    It is of the one that it fits whole; where it fits none, of the one that its telling layers fit, if there are any.
    """
    names = catalogue.of_name(family).names
    bases = [(name, _shipped(name, family)) for name in names.known]
    whole = next(((name, of) for name, of in bases if shape_misfit(of, modules) is None), None)
    return whole or next(((name, of) for name, of in bases if _told(of, modules, names.telling)), None)


def _told(of: Shapes, modules: Modules, telling: tuple[str, ...]) -> bool:
    return any(place[1].endswith(telling) and shape_misfit(of, {place: w}) is None for place, w in modules.items())


@cache
def _shipped(name: str, family: str) -> Shapes:
    from finetune.families import load, single_file
    from finetune.families.source import Source

    configs = single_file.skeleton(single_file.shipped_configs(name))
    return shapes_of(load.networks(Source(name, configs, catalogue.of_name(family))))
