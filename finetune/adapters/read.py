"""Reading adapter files of any tool: checked header first, then every tensor, as modules under diffusers' names."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finetune.adapters import fused, keys, layouts
from finetune.adapters.compatibility import Reading, file_readings
from finetune.adapters.contract import Contract
from finetune.adapters.problems import of_family, problems, unknown_family
from finetune.adapters.strength import Alphas, alphas_of
from finetune.adapters.weights import Weights
from finetune.errors import DataError
from finetune.families import catalogue
from finetune.families.names import Names
from finetune.header import Header, header_of, tensors_file


@dataclass(frozen=True)
class AdapterFile:
    path: Path
    layout: str
    family: str | None  # None: its keys do not tell
    modules: dict[layouts.Place, Weights]
    metadata: dict[str, str]
    embeddings: dict[str, dict[str, Tensor]]  # that came along: token -> key of an embedding file -> rows
    readings: list[Reading]  # what each tool makes of it

    @property
    def contract(self) -> Contract | None:
        """The inference contract, or None for a file of another tool."""
        return Contract.of(self.metadata)

    def on(self, denoiser: str) -> dict[layouts.Place, Weights]:
        """The modules with the denoiser's part named as in this base."""
        return {(p if p.startswith("text_encoder") else denoiser, m): w for (p, m), w in self.modules.items()}


def read(path: Path, family: str | None = None) -> AdapterFile:
    """Reads a file, or a PEFT folder; `family` where the caller knows it better than the keys tell.

    Raises:
        DataError: missing, not safetensors, keys that belong to no known module, unpaired or with non-finite numbers.
    """
    file = tensors_file(path)
    top = header_of(file)
    known = Contract.of(top.metadata)
    contents = keys.sort_keys(top.shapes, family or (known.family if known else None))
    names = named(path, contents.family) if contents.family else None
    if wrong := problems(contents, top):
        unknown = f"{len(contents.unknown)} keys belong to no known layer{of_family(contents)}: {next(iter(contents.unknown), '')}"
        raise DataError(f"{path}: {unknown if contents.entries and contents.unknown else wrong[0]}", _hint(top))
    state = _state(path, file)
    alphas = alphas_of(path, top.metadata)
    modules: dict[layouts.Place, Weights] = {}
    for entry in contents.entries:
        modules |= _weights(path, entry, names, state, alphas)
    embeddings = {token: {name: _rows(state[key]) for name, key in keys_of.items()} for token, keys_of in contents.embeddings.items()}
    return AdapterFile(path, contents.layout, contents.family, modules, top.metadata, embeddings, file_readings(contents, top))


def named(path: Path, family: str | None) -> Names:
    """What files of a family call its modules, for who must know: to write `path`, or in another layout.

    Raises:
        DataError: the family is not told, or not known here.
    """
    if family is None:
        raise DataError(f"{path}: its keys do not tell its family", "say --family")
    names = catalogue.names_of(family)
    if names is None:
        raise DataError(f"{path}: {unknown_family(family)}")
    return names


def _rows(t: Tensor) -> Tensor:
    """An embedding's vectors [vectors, D]; one alone may stand without the first axis."""
    return t[None] if t.ndim == 1 else t


def _hint(top: Header) -> str:
    if top.shapes.keys() & keys.EMBEDDED:
        return "it is an embedding: give it with --embedding"
    return "`ft adapter inspect` lists all that is wrong with it"


def _state(path: Path, file: Path) -> layouts.State:
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


def _weights(path: Path, e: keys.ModuleKeys, names: Names | None, state: layouts.State, alphas: Alphas) -> dict[layouts.Place, Weights]:
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
    if names is None:
        if e.original and (len(e.modules) > 1 or any(spec.names.swapped(e.modules[0], *w.size) for spec in catalogue.FAMILIES)):
            raise DataError(f"{where}: stands under an original name, and the keys do not tell of which family", "say --family")
        return {(e.part, e.modules[0]): w}
    if e.original and names.swapped(e.modules[0], *w.size):
        w = fused.swapped(where, w)
    if len(e.modules) == 1:
        return {(e.part, e.modules[0]): w}
    return {(e.part, m): x for m, x in zip(e.modules, fused.split_fused(where, w, e.modules, names.share), strict=True) if x is not None}
