"""What a command left, against what an undisturbed one leaves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEFT = (".tmp-*", ".old-*", ".probe-*")
Tree = Mapping[str, bytes]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but what was left half-written."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock" and not _half(p.relative_to(folder))]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def _half(path: Path) -> bool:
    return any(part.startswith(tuple(pattern[:-1] for pattern in LEFT)) for part in path.parts)


def left(folder: Path) -> list[str]:
    """What was left half-written."""
    return sorted(str(p.relative_to(folder)) for pattern in LEFT for p in folder.rglob(pattern))


@dataclass(frozen=True)
class Whole:
    """What an undisturbed command leaves: files whose bytes two such commands agree on, and JSON without what differs between them."""

    same: Tree
    json: Mapping[str, tuple[Any, frozenset[str]]]
    names: frozenset[str]

    @classmethod
    def of(cls, first: Tree, second: Tree) -> "Whole":
        same = {name: data for name, data in first.items() if second.get(name) == data}
        told = {}
        for name in first.keys() & second.keys() - same.keys():
            if name.endswith((".json", ".jsonl")):
                one, other = flat(first[name]), flat(second[name])
                told[name] = one, frozenset(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        return cls(same, told, frozenset(first))

    def differences(self, found: Tree, results: Callable[[str], bool] = lambda name: True) -> list[str]:
        """How what another command left is not this, file by file."""
        out = [f"{name} is missing" for name in sorted(self.names - found.keys()) if results(name)]
        out += [f"{name} is too much" for name in sorted(found.keys() - self.names) if results(name)]
        out += [f"{name} has other bytes" for name, data in self.same.items() if name in found and results(name) and found[name] != data]
        for name, (value, loose) in self.json.items():
            if name in found and results(name):
                other = flat(found[name])
                keys = sorted(k for k in value.keys() | other.keys() if k not in loose and value.get(k) != other.get(k))
                out += [f"{name} says otherwise: {', '.join(keys)}"] if keys else []
        return out


def flat(data: bytes) -> dict[str, Any]:
    """JSON, or lines of it, as one level of keys."""
    out: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if pairs is None:
            out[name] = value
        for key, one in pairs or ():
            walk(one, f"{name}.{key}")

    for number, line in enumerate([data] if data.lstrip()[:2] in (b"{\n", b"[\n") else data.splitlines()):
        try:
            walk(json.loads(line), str(number))
        except ValueError:
            out[str(number)] = line.decode(errors="replace")
    return out
