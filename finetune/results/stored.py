"""What lies in the cache, when it was used last and by whom, and what goes first where it is too large. Torch-free.

Nothing here is lost for good: latents, captions and class pictures are made again, bases unpacked again.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune import files
from finetune.data import prune
from finetune.errors import ConfigError
from finetune.results import lock
from finetune.run_folder import RunFolder
from finetune.text import from_json

CLASSES = "class-pictures"  # the folder of all class pictures that bases drew
DRAWN = re.compile(r"class-[0-9a-f]{12}-\d{6}\.png")
KINDS = ("latents", "texts", CLASSES, "bases")
_SPACE, _SHARD = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{32}\.safetensors")
_SET = re.compile(r"[0-9a-f]{12}")
_BASE = re.compile(r"[0-9a-f]{64}(\.safetensors)?|configs-[0-9a-f]{64}")
HOUR = 3600.0  # seconds
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Entry:
    """One thing in the cache that goes as a whole: a shard of latents or captions, the class pictures of one class, a base."""

    kind: str
    path: Path
    size: int  # bytes
    used: float  # seconds since 1970
    holder: str | None = None  # the process whose run uses it now

    @property
    def group(self) -> Path:
        """What is listed as one: all shards of a space, else the entry."""
        return self.path.parent if self.kind in ("latents", "texts") else self.path


def entries() -> list[Entry]:
    """All that is ours in the cache, the one that was used last at the end."""
    users = [(note, lock.holder(note.out)) for note in prune.use_notes()]
    running = [(_began(note), who) for note, who in users if who]
    held = [_held(entry, running) for entry in (*_shards(users), *_class_pictures(), *_bases())]
    return sorted(held, key=lambda e: (e.used, e.path))


def total() -> int:
    """Bytes of all entries, without asking who uses them."""
    return sum(entry.size for entry in (*_shards([]), *_class_pictures(), *_bases()))


def _began(note: prune.Note) -> float:
    """When the run began that holds the folder of a note."""
    with suppress(OSError):
        return min(note.time, RunFolder(note.out).lock.stat().st_mtime)
    return note.time


def _held(entry: Entry, running: Iterable[tuple[float, str]]) -> Entry:
    """The same; with the run that may use it, if it was used since one began that still runs."""
    who = entry.holder or next((who for began, who in running if entry.used >= began), None)
    return Entry(entry.kind, entry.path, entry.size, entry.used, who)


def _folders(kind: str, name: re.Pattern[str]) -> list[Path]:
    return [p for p in sorted((files.cache_root() / kind).glob("*")) if name.fullmatch(p.name) and not p.is_symlink()]


def _shards(users: list[tuple[prune.Note, str | None]]) -> Iterator[Entry]:
    for kind in ("latents", "texts"):
        for space in _folders(kind, _SPACE):
            name = f"{kind}/{space.name}"
            mine = [(set(note.used[name]), note.time, who) for note, who in users if name in note.used]
            for path in sorted(space.glob("*.safetensors")):
                if _SHARD.fullmatch(path.name) and not path.is_symlink():
                    yield _shard(kind, path, mine)


def _shard(kind: str, path: Path, users: list[tuple[set[str], float, str | None]]) -> Entry:
    """One file of rows; `users` are runs by their keys, when they began, and their process if they still run."""
    keys, status = _keys(path) if users else [], path.stat()
    mine = [(began, who) for used, began, who in users if not used.isdisjoint(keys)]
    used = max([status.st_mtime, *(began for began, _ in mine)])
    return Entry(kind, path, status.st_size, used, next((who for _, who in mine if who), None))


def _keys(path: Path) -> list[str]:
    """The keys of a shard's rows, in hexadecimal, without its tensors; none of a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as shard:
            return [bytes(row).hex() for row in shard.get_tensor("key")]
    except (OSError, SafetensorError, TypeError):
        return []


def _class_pictures() -> Iterator[Entry]:
    for folder in _folders(CLASSES, _SET):
        drawn = _drawn(folder)
        if drawn:
            yield Entry(CLASSES, folder, sum(p.stat().st_size for p in drawn), folder.stat().st_mtime)


def _drawn(folder: Path) -> list[Path]:
    """What bases drew there; a person's own pictures may lie beside."""
    return [p for p in sorted(folder.glob("class-*.png")) if DRAWN.fullmatch(p.name)]


def _bases() -> Iterator[Entry]:
    for path in _folders("bases", _BASE):
        yield Entry("bases", path, files.size(path), path.stat().st_mtime)


def about(entry: Entry) -> str:
    """What an entry's group is, in words."""
    if entry.kind == CLASSES:
        return f"pictures: {len(_drawn(entry.path))}"
    if entry.kind != "bases":
        return f"files: {len([*entry.group.glob('*.safetensors')])}"
    if entry.path.is_file():
        return "weights of a pickled base"
    with suppress(OSError, ValueError, LookupError, TypeError):
        pipeline = from_json(files.read_text(entry.path / "model_index.json"))["_class_name"]
        return f"configs of {pipeline}" if entry.path.name.startswith("configs-") else f"unpacked {pipeline}"
    return "base"


def left_behind() -> list[Path]:
    """What killed processes left half-written in the cache; not within an hour, as others may run on another host."""
    root = files.cache_root()
    places = [root, *(root / kind for kind in ("runs", *KINDS))]
    for kind, name in (("latents", _SPACE), ("texts", _SPACE), (CLASSES, _SET)):
        places += _folders(kind, name)
    paths: list[Path] = []
    for place in places:
        paths += files.left_behind(place, HOUR)
    return paths


def shrunk(most: int) -> tuple[list[Entry], int]:
    """What has to go so that at most `most` bytes stay, least recently used first and nothing of a running run; and what then stays."""
    there = entries()
    stays, goes = sum(e.size for e in there), list[Entry]()
    for entry in there:
        if stays > most and entry.holder is None:
            goes.append(entry)
            stays -= entry.size
    return goes, stays


def remove(entry: Entry) -> None:
    """Nobody sees half of it; what is not ours beside it stays."""
    if entry.kind == CLASSES:
        for path in _drawn(entry.path):
            path.unlink(missing_ok=True)
    elif entry.path.is_dir():
        shutil.rmtree(files.put_aside(entry.path), ignore_errors=True)
    else:
        entry.path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        entry.group.rmdir()


def size_of(text: str) -> int:
    """Bytes of a size such as 10GB, 500 MB, 1.5GiB or 0.

    Raises:
        ConfigError: it is no size.
    """
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?\s*", text, re.I | re.ASCII)
    if not size:
        raise ConfigError(f"--max-size {text}: is no size", "for example 10GB, 500MB or 0")
    unit = (size[2] or "").lower()
    return int(float(size[1]) * (_BINARY[unit] if size[3] else _UNITS[unit]))
