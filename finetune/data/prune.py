"""Which runs use which entries of the cache, so that what no run uses can be removed."""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from finetune import files
from finetune.errors import ResourceError
from finetune.run_folder import RunFolder
from finetune.text import from_json

YOUNG = 24 * 3600  # seconds for which a run counts that has not written its folder yet


class Note(NamedTuple):
    """What a run in the folder `out` uses: by space, its keys in hexadecimal. `time` is when it last began, in seconds."""

    path: Path
    out: Path
    used: Mapping[str, Iterable[str]]
    time: float


class Pruned(NamedTuple):
    rows: int
    size: int  # bytes
    runs: int  # that are still there


def note_use(out: Path, used: Mapping[Path, Iterable[bytes]]) -> None:
    """Notes what a run in the folder `out` uses: by space, its keys."""
    names = {space.relative_to(files.cache_root()).as_posix(): sorted({k.hex() for k in keys}) for space, keys in used.items()}
    files.write_json(_note(out), {"out": str(out.resolve()), "used": names})


def note_beginning(out: Path) -> None:
    """Notes that a run begins in `out`, before it is known what it uses: what it touches from now on is held as long as it runs."""
    with suppress(ResourceError, OSError):  # a cache that cannot be written is refused where it is needed
        if _note(out).exists():
            files.touch(_note(out))
        else:
            note_use(out, {})


def use_notes() -> Iterator[Note]:
    """Of all runs that used the cache; a damaged one counts as none."""
    for path in sorted(_folder().glob("*.json")):
        with suppress(OSError, ValueError, LookupError, TypeError):
            note = from_json(files.read_text(path))
            yield Note(path, Path(note["out"]), dict(note["used"]), path.stat().st_mtime)


def _note(out: Path) -> Path:
    return _folder() / f"{hashlib.sha256(os.fsencode(str(out.resolve()))).hexdigest()[:16]}.json"


def _folder() -> Path:
    return files.cache_root() / "runs"


def prune() -> Pruned:
    """Removes the latents and text embeddings that no run refers to: no run whose folder is there, or that began within a day."""
    from finetune.data.cache import Cache  # which needs torch, as a note does not

    wanted: dict[str, set[bytes]] = {}
    runs = 0
    for note in use_notes():
        if not RunFolder(note.out).record.exists() and time.time() - note.time > YOUNG:
            note.path.unlink()
            continue
        runs += 1
        for name, keys in note.used.items():
            wanted.setdefault(name, set()).update(map(bytes.fromhex, keys))
    rows = size = 0
    for kind in ("latents", "texts"):
        for space in (files.cache_root() / kind).glob("*"):
            gone = Cache(space).keep(wanted.get(f"{kind}/{space.name}", set()))
            rows, size = rows + gone[0], size + gone[1]
    return Pruned(rows, size, runs)
