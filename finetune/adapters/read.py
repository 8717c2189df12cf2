"""Reading adapter files of any tool: checked header first, then every tensor, as modules under diffusers' names."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finetune import files
from finetune.adapters import fused, keys, layouts, leaves, names
from finetune.adapters.contract import Contract
from finetune.adapters.header import Header, header_of, tensors_file
from finetune.adapters.readers import Traits
from finetune.adapters.weights import Weights
from finetune.errors import DataError


@dataclass(frozen=True)
class Adapter:
    path: Path
    layout: str
    family: str | None  # None: its keys do not tell
    modules: dict[layouts.Place, Weights]
    metadata: dict[str, str]
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # that came along: token -> key of an embedding file -> rows

    @property
    def contract(self) -> Contract | None:
        """The inference contract, or None for a file of another tool."""
        return Contract.of(self.metadata)

    @property
    def traits(self) -> Traits:
        """What decides who reads it; of a file in a known layout and family."""
        weights = self.modules.values()
        ranks = {w.rank for w in weights if w.rank}
        more = bool(self.embeddings) or any("diff_b" in w.tensors for w in weights)
        return Traits.of(self.family or "", self.layout, {w.kind for w in weights}, [m for _, m in self.modules], ranks, more)

    def on(self, denoiser: str) -> dict[layouts.Place, Weights]:
        """The modules with the denoiser's part named as in this base."""
        return {(p if p.startswith("text_encoder") else denoiser, m): w for (p, m), w in self.modules.items()}


def read(path: Path, family: str | None = None) -> Adapter:
    """Reads a file, or a PEFT folder; `family` where the caller knows it better than the keys tell.

    Raises:
        DataError: missing, not safetensors, keys that belong to no known module, unpaired or with non-finite numbers.
    """
    file = tensors_file(path)
    top = header_of(file)
    known = Contract.of(top.metadata)
    found = keys.find(top.shapes, family or (known.family if known else None))
    if wrong := problems(found, top):
        unknown = f"{len(found.unknown)} keys belong to no known layer{_of(found)}: {next(iter(found.unknown), '')}"
        raise DataError(f"{path}: {unknown if found.entries and found.unknown else wrong[0]}", _hint(top))
    state = _state(path, file, found)
    alphas = alphas_of(path, top.metadata)
    modules: dict[layouts.Place, Weights] = {}
    for entry in found.entries:
        modules |= _weights(path, entry, state, alphas)
    embeddings = {token: {name: _rows(state[key]) for name, key in own.items()} for token, own in found.embeddings.items()}
    return Adapter(path, found.layout, found.family, modules, top.metadata, embeddings)


def _rows(t: Tensor) -> Tensor:
    """An embedding's vectors [vectors, D]; one alone may stand without the first axis."""
    return t[None] if t.ndim == 1 else t


def _hint(top: Header) -> str:
    if top.shapes.keys() & keys.EMBEDDED:
        return "it is an embedding: give it with --embedding"
    return "`ft adapter inspect` lists all that is wrong with it"


def _of(found: keys.Found) -> str:
    return f" of {found.family}" if found.family else ""


FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
INTEGERS = {"I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64"}


def problems(found: keys.Found, top: Header) -> list[str]:
    """What cannot be right whatever the base, a line each: keys that are unknown or stand for a layer twice, tensors that do not match,
    numbers of a kind that is none of weights."""
    if not found.entries:
        return [f"not an adapter in a known layout{_of(found)}: its first key is {min(top.shapes, default='missing')}"]
    out = [f"key {key} belongs to no known layer{_of(found)}" for key in found.unknown]
    out += [f"key {key} stands for a layer that another key stands for too" for key in found.twice]
    for e in found.entries:
        out += _misfits(e, top)
    for key in (key for rows in found.embeddings.values() for key in rows.values()):
        if len(top.shapes[key]) not in (1, 2) or 0 in top.shapes[key]:
            out.append(f"key {key} has the shape {list(top.shapes[key])}")
    return out


def _misfits(e: keys.Entry, top: Header) -> list[str]:
    where, shapes = f"{e.part}.{e.modules[0]}", e.shapes(top.shapes)
    if e.kind is None:
        return [f"{where} {leaves.odd(e.leaves)}"]
    if leaf := leaves.misshapen(shapes):
        return [f"key {e.leaves[leaf]} has the shape {list(shapes[leaf])}"]
    if pair := leaves.unpaired(shapes):
        right, left = (list(shapes[x]) for x in pair)
        return [f"{where} has shapes {right} and {left}, no matching pair"]
    strange = {leaf: top.dtypes[key] for leaf, key in e.leaves.items()}
    allowed = {leaf: FLOATS | INTEGERS if leaf == "alpha" else FLOATS for leaf in strange}
    return [
        f"key {e.leaves[leaf]} holds numbers of the kind {dtype}, which are not understood here"
        for leaf, dtype in strange.items()
        if dtype not in allowed[leaf]
    ]


def _state(path: Path, file: Path, found: keys.Found) -> layouts.State:
    """All tensors, with eight-bit floats as sixteen-bit ones, which hold each of their values.

    Raises:
        DataError: unreadable, or a number is not finite.
    """
    try:
        state = load_file(file)
    except (SafetensorError, OSError, ValueError) as e:
        raise DataError(f"{path}: not a readable safetensors file ({e})") from e
    state = {k: t.half() if t.is_floating_point() and t.element_size() == 1 else t for k, t in state.items()}
    if bad := [k for k, t in state.items() if not torch.isfinite(t).all()]:
        raise DataError(f"{path}: {bad[0]} holds numbers that are not finite")
    return state


def _weights(path: Path, e: keys.Entry, state: layouts.State, alphas: "Alphas") -> dict[layouts.Place, Weights]:
    tensors = {name: state[key] for name, key in e.leaves.items() if name != "alpha"}
    where = f"{path}: {e.part}.{e.modules[0]}"
    assert e.kind  # noqa: S101  see problems
    alpha = float(state[e.leaves["alpha"]].flatten()[0]) if "alpha" in e.leaves else None
    bias = tensors.pop("up_bias", None)
    w = Weights(e.kind, tensors, alpha)
    if alpha is None and w.rank and (strength := alphas.strength(e.part, e.modules[0], w.rank)) is not None:
        w = replace(w, alpha=strength * w.rank)
    if bias is not None:  # PEFT multiplies it by the strength, as all that its second matrix gives
        whole = tensors.get("diff_b", torch.zeros_like(bias, dtype=torch.float32)) + w.strength * bias.float()
        w = replace(w, tensors=tensors | {"diff_b": whole.to(bias.dtype)})
    if e.original and e.modules[0] in names.SWAPPED:
        w = fused.swapped(where, w)
    if len(e.modules) == 1:
        return {(e.part, e.modules[0]): w}
    return {(e.part, m): x for m, x in zip(e.modules, fused.split(where, w, len(e.modules)), strict=True) if x is not None}


@dataclass(frozen=True)
class Alphas:
    """The strengths that stand beside the tensors: in a PEFT folder's config, or in diffusers' metadata."""

    configs: Mapping[str, Mapping[str, Any]]  # by part; "" is any

    def strength(self, part: str, module: str, rank: int) -> float | None:
        config = self.configs.get(part) or self.configs.get("denoiser" if not part.startswith("text_encoder") else part)
        if not config:
            return None
        # As PEFT looks them up: the first pattern that the end of the name matches, as a regular expression.
        patterns = config.get("alpha_pattern") or {}
        key = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)
        alpha = patterns[key] if key else config.get("lora_alpha", config.get("r"))
        return None if alpha is None else float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def alphas_of(path: Path, metadata: Mapping[str, str]) -> Alphas:
    """Raises:
    DataError: a config that cannot be read, or that asks for what is not understood here.
    """
    try:
        if path.is_dir():
            config = json.loads(files.read_text(path / "adapter_config.json"))
            float(config["lora_alpha"]), int(config["r"]), dict(config.get("alpha_pattern") or {})
            if config.get("peft_type", "LORA") != "LORA":
                raise DataError(
                    f"{path}: a PEFT adapter of the type {config['peft_type']} is not understood here", "load it with PEFT itself"
                )
            return Alphas({"denoiser": config})
        configs: dict[str, dict[str, Any]] = {}
        for name, value in json.loads(metadata.get("lora_adapter_metadata", "{}")).items():
            part, _, setting = name.partition(".")
            configs.setdefault(part if part.startswith("text_encoder") else "denoiser", {})[setting] = value
        for config in configs.values():
            float(config.get("lora_alpha") or 0), dict(config.get("alpha_pattern") or {})
        return Alphas(configs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path}: no readable r and lora_alpha ({e})") from e
