"""From the keys of an adapter file, of whatever tool, to the modules they belong to. Reads names and shapes, no numbers; torch-free."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from finetune.adapters import leaves
from finetune.adapters.places import KeyReader
from finetune.families import catalogue
from finetune.families.names import DENOISER, Layer, Names

ALONE = "emb_params"  # the key of a token's rows for an only text encoder


def _embedded() -> frozenset[str]:
    keys = {ALONE}
    for spec in catalogue.FAMILIES:
        keys |= set(spec.names.embedding_keys.values())
    return frozenset(keys)


EMBEDDED = _embedded()  # the keys of an embedding file
_BUNDLED = re.compile(rf"^bundle_emb\.(.+)\.({'|'.join(sorted(EMBEDDED))}|string_to_param\.\*)$")


@dataclass
class ModuleKeys:
    """One module of the file; several of diffusers', in order, where the original code fuses them."""

    part: str
    modules: tuple[str, ...]
    original: Names | None = None  # the family in whose original code it is named so, where rows may stand in another order
    label: str = ""  # the file's own word for the part
    leaves: dict[str, str] = field(default_factory=dict)  # our name of the tensor -> its key

    @property
    def kind(self) -> str | None:
        return leaves.kind(self.leaves)

    def shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        """Those of its own tensors, by our names."""
        return {leaf: shapes[key] for leaf, key in self.leaves.items()}

    def rank(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Of the low-rank kinds; 0 for the others."""
        for leaf in leaves.RANKED:
            if leaf in self.leaves and (shape := shapes[self.leaves[leaf]]):
                return shape[0]
        return 0


@dataclass
class FileModules:
    layout: str
    entries: list[ModuleKeys]
    embeddings: dict[str, dict[str, str]]  # token -> key of an embedding file -> its key here
    unknown: list[str]  # keys that belong to nothing known
    twice: list[str]  # keys whose place another key has taken
    family: str | None

    def ranks(self, shapes: Mapping[str, Sequence[int]]) -> list[int]:
        """Of the modules that have one."""
        return [rank for e in self.entries if (rank := e.rank(shapes))]


def sort_keys(shapes: Mapping[str, Sequence[int]], family: str | None = None) -> FileModules:
    """Sorts keys into modules, as those of the `family`, or of the only one that recognises them."""
    contents = _read_as(shapes, family) if family else _recognised(shapes)
    names = catalogue.names_of(contents.family)
    if names is None:
        return contents
    foreign = [e for e in contents.entries if not all(names.has(e.part, m) for m in e.modules)]
    for e in foreign:
        contents.unknown += e.leaves.values()
    contents.unknown.sort()
    contents.entries = [e for e in contents.entries if e not in foreign]
    for e in contents.entries:
        e.part = names.denoiser if e.part == DENOISER else e.part
    return contents


def _reading(names: Names | None) -> KeyReader:
    """All families' names, those of one first."""
    return KeyReader(sorted((spec.names for spec in catalogue.FAMILIES), key=lambda other: other is not names))


def _read_as(shapes: Mapping[str, Sequence[int]], family: str | None) -> FileModules:
    """As those of a family first."""
    contents = _sorted(shapes, _reading(catalogue.names_of(family)))
    contents.family = family
    return contents


def _recognised(shapes: Mapping[str, Sequence[int]]) -> FileModules:
    """As those of the only family that recognises them; of none where none does, or several do."""
    claims = []
    for spec in catalogue.FAMILIES:
        contents = _read_as(shapes, spec.name)
        if spec.names.recognises(_layers(contents, shapes, spec.names)):
            claims.append(contents)
    return claims[0] if len(claims) == 1 else _read_as(shapes, None)


def _layers(contents: FileModules, shapes: Mapping[str, Sequence[int]], names: Names) -> list[Layer]:
    """As a family sees them."""
    out = []
    for e in contents.entries:
        tensors = e.shapes(shapes)
        inputs = leaves.layer_size(tensors)[1] if leaves.misshapen(tensors) is None else 0
        out += [Layer(e.part, module, e.original is names, inputs, e.label) for module in e.modules]
    return out


def _sorted(shapes: Mapping[str, Sequence[int]], reading: KeyReader) -> FileModules:
    """The keys by what their names alone say."""
    entries: dict[tuple[str, tuple[str, ...]], ModuleKeys] = {}
    embeddings: dict[str, dict[str, str]] = {}
    unknown, twice, seen = [], [], set()
    for key in sorted(shapes):
        if m := _BUNDLED.match(key):
            name = m[2] if m[2] in EMBEDDED else ALONE
            embeddings.setdefault(m[1], {})[name] = key
            continue
        stem, leaf = leaves.split_key(reading.usual(key))
        place = reading.place(stem) if leaf else None
        if place is None or leaf is None:
            unknown.append(key)
            continue
        seen.add(place.layout)
        new = ModuleKeys(place.part, place.modules, place.original, place.label)
        entry = entries.setdefault((place.part, place.modules), new)
        if leaf in entry.leaves:
            twice.append(key)
        else:
            entry.leaves[leaf] = key
    twice += _covered(entries.values())
    return FileModules("+".join(sorted(seen)) or "none", list(entries.values()), embeddings, unknown, twice, None)


def _covered(entries: Collection[ModuleKeys]) -> list[str]:
    """A key of each fused projection that also has a member of its own."""
    single = {(e.part, e.modules[0]) for e in entries if len(e.modules) == 1}
    fused = [e for e in entries if len(e.modules) > 1 and any((e.part, m) in single for m in e.modules)]
    return [next(iter(e.leaves.values())) for e in fused]
