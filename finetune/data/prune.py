"""Which runs use which entries of the cache, so that what no run uses can be removed."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from finetune import files
from finetune.data.cache import Cache

YOUNG = 24 * 3600  # seconds for which a run counts that has not written its folder yet


class Pruned(NamedTuple):
    rows: int
    size: int  # bytes
    runs: int  # that are still there


def remember(out: Path, used: Mapping[Path, Iterable[bytes]]) -> None:
    """Notes what a run in the folder `out` uses: by space, its keys."""
    place = str(out.resolve())
    names = {space.relative_to(files.cache_root()).as_posix(): sorted({k.hex() for k in keys}) for space, keys in used.items()}
    files.write_json(_folder() / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.json", {"out": place, "used": names})


def _folder() -> Path:
    return files.cache_root() / "runs"


def prune() -> Pruned:
    """Removes the latents and text embeddings that no run refers to: no run whose folder is there, or that began within a day."""
    wanted: dict[str, set[bytes]] = {}
    runs = 0
    for path in _folder().glob("*.json"):
        note = json.loads(path.read_text(encoding="utf-8"))
        if not (Path(note["out"]) / "run.yaml").exists() and time.time() - path.stat().st_mtime > YOUNG:
            path.unlink()
            continue
        runs += 1
        for space, names in note["used"].items():
            wanted.setdefault(space, set()).update(map(bytes.fromhex, names))
    rows = size = 0
    for kind in ("latents", "texts"):
        for space in (files.cache_root() / kind).glob("*"):
            gone = Cache(space).keep(wanted.get(f"{kind}/{space.name}", set()))
            rows, size = rows + gone[0], size + gone[1]
    return Pruned(rows, size, runs)
