"""Reading adapter files of any tool: checked header first, then every tensor, as modules under diffusers' names."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from finetune.adapters import keys, layouts
from finetune.adapters.contract import Contract
from finetune.adapters.weights import Weights
from finetune.errors import DataError

MOST_HEADER = 100_000_000  # bytes: what the format allows


@dataclass(frozen=True)
class Adapter:
    path: Path
    layout: str
    family: str | None  # None: its keys do not tell
    modules: dict[layouts.Place, Weights]
    metadata: dict[str, str]

    @property
    def contract(self) -> Contract | None:
        """The inference contract, or None for a file of another tool."""
        return Contract.of(self.metadata)

    def on(self, denoiser: str) -> dict[layouts.Place, Weights]:
        """The modules with the denoiser's part named as in this base."""
        return {(p if p.startswith("text_encoder") else denoiser, m): w for (p, m), w in self.modules.items()}


def tensors_file(path: Path) -> Path:
    """The file with the tensors: the path itself, or the one in a PEFT folder."""
    return path / "adapter_model.safetensors" if path.is_dir() else path


def read(path: Path, family: str | None = None) -> Adapter:
    """Reads a file, or a PEFT folder; `family` where the caller knows it better than the keys tell.

    Raises:
        DataError: missing, not safetensors, keys that belong to no known module, unpaired or with non-finite numbers.
    """
    file = tensors_file(path)
    top = header_of(file)
    try:
        state = load_file(file)
    except (SafetensorError, OSError, ValueError) as e:
        raise DataError(f"{path}: not a readable safetensors file ({e})") from e
    known = Contract.of(top.metadata)
    found = keys.find(top.shapes, family or (known.family if known else None))
    if not found.entries:
        own = f"its first key is {min(state, default='missing')}"
        hint = "it is an embedding: give it with --embedding" if state.keys() & keys.EMBEDDED else own
        raise DataError(f"{path}: not an adapter in a known layout", hint)
    if found.unknown:
        raise DataError(
            f"{path}: {len(found.unknown)} keys belong to no known layer: {found.unknown[0]}", "`ft adapter inspect` lists them"
        )
    if wrong := shape_problems(found, top.shapes):
        raise DataError(f"{path}: {wrong[0]}")
    if odd := [k for k, t in state.items() if not t.is_floating_point() or t.element_size() < 2]:
        raise DataError(f"{path}: {odd[0]} holds numbers of the kind {state[odd[0]].dtype}, which are not understood here")
    if bad := [k for k, t in state.items() if not torch.isfinite(t).all()]:
        raise DataError(f"{path}: {bad[0]} holds numbers that are not finite")
    alphas = alphas_of(path, top.metadata)
    modules: dict[layouts.Place, Weights] = {}
    for entry in found.entries:
        modules |= _weights(path, entry, state, alphas)
    return Adapter(path, found.layout, found.family, modules, top.metadata)


def shape_problems(found: keys.Found, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What cannot be right whatever the base: halves that are missing or do not match, tensors of no or too few axes, keys too many."""
    out = [f"{key} stands for a layer that another key stands for too" for key in found.twice]
    for e in found.entries:
        where = f"{e.part}.{e.modules[0]}"
        if e.kind is None:
            out.append(f"{where} has no matching half, only {', '.join(sorted(e.leaves))}")
            continue
        for leaf, key in e.leaves.items():
            least = {"alpha": 0, "rows": 1, "dora": 2, "diff": 1, "diff_b": 1, "blocks": 3}.get(leaf, 2)
            most = {"alpha": 1, "blocks": 3}.get(leaf, 5)
            if not least <= len(shapes[key]) <= most or 0 in shapes[key]:
                out.append(f"{key} has the shape {list(shapes[key])}")
                break
        else:
            if "down" in e.leaves and "mid" not in e.leaves and shapes[e.leaves["down"]][0] != shapes[e.leaves["up"]][1]:
                down, up = (list(shapes[e.leaves[x]]) for x in ("down", "up"))
                out.append(f"{where} has shapes {down} and {up}, no matching pair")
    return out


def _weights(path: Path, e: keys.Entry, state: layouts.State, alphas: "Alphas") -> dict[layouts.Place, Weights]:
    tensors = {name: state[key] for name, key in e.leaves.items() if name != "alpha"}
    where = f"{path}: {e.part}.{e.modules[0]}"
    assert e.kind  # noqa: S101  see shape_problems
    alpha = float(state[e.leaves["alpha"]].flatten()[0]) if "alpha" in e.leaves else None
    w = Weights(e.kind, tensors, alpha)
    if alpha is None and w.rank and (strength := alphas.strength(e.part, e.modules[0], w.rank)) is not None:
        w = replace(w, alpha=strength * w.rank)
    if len(e.modules) == 1:
        return {(e.part, e.modules[0]): w}
    return {(e.part, m): x for m, x in zip(e.modules, _split(where, w, len(e.modules)), strict=True) if x is not None}


def _split(where: str, w: Weights, count: int) -> list[Weights | None]:
    """A fused projection's adapter as one for each of `count` projections; None where it changes nothing."""
    if w.kind == "oft" or "diff_b" in w.tensors or (w.decomposed and w.kind != "dora"):
        raise DataError(f"{where}: {w.kind}{' with DoRA' if w.decomposed else ''} on a fused projection is not understood here")
    height = w.tensors["up"].shape[0] if "up" in w.tensors else 0
    if w.kind in ("lora", "dora"):
        width = w.tensors["down"].shape[1]
    else:  # no base weight is needed for these kinds' change
        whole = w.raw().flatten(1)
        height, width = whole.shape
    sizes = [height // count] * count if count == 3 else [width] * 3 + [height - 3 * width]
    if sum(sizes) != height or min(sizes) <= 0:
        raise DataError(f"{where}: {height} rows are not those of {count} projections")
    if w.kind not in ("lora", "dora"):
        return [Weights("full", {"diff": rows.contiguous()}, None) for rows in torch.split(whole, sizes)]
    parts: list[Weights | None] = []
    norms = w.rows()
    if w.kind == "dora" and norms is None:
        raise DataError(f"{where}: DoRA over the columns of a fused projection is not understood here")
    magnitudes = torch.split(norms, sizes) if norms is not None else [None] * count
    for up, magnitude in zip(torch.split(w.tensors["up"], sizes), magnitudes, strict=True):
        used = up.abs().sum(0) > 0  # a block-diagonal pair gives each projection back its own rank
        if not used.any() and magnitude is None:
            parts.append(None)
            continue
        used = used if used.any() else torch.ones_like(used)
        tensors = {"down": w.tensors["down"][used].contiguous(), "up": up[:, used].contiguous()}
        if magnitude is not None:
            tensors["rows"] = magnitude.contiguous()
        parts.append(Weights(w.kind, tensors, w.strength * int(used.sum())))
    return parts


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
            config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
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


@dataclass(frozen=True)
class Header:
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    twice: list[str]  # keys that stand more than once


def header_of(file: Path) -> Header:
    """A safetensors header without its tensors, with what libraries overlook.

    Raises:
        DataError: missing, no safetensors, or a header that lies about the file.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such adapter file")
    size = file.stat().st_size
    with file.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_HEADER):
            raise DataError(f"{file}: not a readable safetensors file (its header would be {length} bytes long)", _disguised(file))
        raw = f.read(length)
    twice: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [k for k, _ in found]
        twice.extend(sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else [])
        return dict(found)

    try:
        top = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs)
        metadata = {str(k): str(v) for k, v in (top.pop("__metadata__", None) or {}).items()}
        shapes = {k: tuple(int(n) for n in v["shape"]) for k, v in top.items()}
        dtypes = {k: str(v["dtype"]) for k, v in top.items()}
        end = max((int(v["data_offsets"][1]) for v in top.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as e:
        raise DataError(f"{file}: not a readable safetensors file ({type(e).__name__} in its header)", _disguised(file)) from e
    if end != size - 8 - length:
        raise DataError(f"{file}: not a readable safetensors file (its header promises {end} bytes, {size - 8 - length} are there)")
    return Header(shapes, dtypes, metadata, twice)


def _disguised(file: Path) -> str:
    with file.open("rb") as f:
        begin = f.read(4)
    return "it is a pickle under another name; nothing in it was run" if begin[:2] in (b"PK", b"\x80\x02", b"\x80\x04") else ""
