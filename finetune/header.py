"""The header of a safetensors file, checked before anything else of the file is believed. Torch-free."""

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from finetune import files
from finetune.errors import DataError, line
from finetune.text import from_json

MOST_HEADER = 100_000_000  # bytes: what the format allows
MOST_KEY = 1000  # letters of a tensor's name
MOST_SIZE = 2**48  # of a tensor's axis, and of the file in bytes
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8,
    "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip


def tensors_file(path: Path) -> Path:
    """The file with the tensors: the path itself, or the one in a PEFT folder."""
    return path / "adapter_model.safetensors" if path.is_dir() else path


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: by key the shapes and the number formats, and texts by name."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    twice: list[str]  # keys that stand more than once


def header_of(file: Path) -> Header:
    """A safetensors header without its tensors, with what libraries overlook.

    Raises:
        DataError: missing, no safetensors, or a header that lies about the file.
    """
    if not file.exists():
        raise DataError(f"{file}: no such adapter file")
    size = file.stat().st_size
    try:
        with files.opened(file) as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(size - 8, MOST_HEADER):
                raise DataError(f"{file}: not a readable safetensors file (its header would be {length} bytes long)", _disguised(file))
            raw = f.read(length)
    except OSError as e:
        raise DataError(f"{file}: cannot be read ({e.strerror})") from e
    twice: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) < len(found):
            twice.extend(sorted(k for k, count in Counter(k for k, _ in found).items() if count > 1))
        return made

    try:
        top = from_json(raw.decode("utf-8"), pairs)
        metadata = {str(k): str(v) for k, v in (top.pop("__metadata__", None) or {}).items()}
        shapes = {k: tuple(_size(n) for n in v["shape"]) for k, v in top.items()}
        dtypes = {k: str(v["dtype"]) for k, v in top.items()}
        spans = sorted((_size(v["data_offsets"][0]), _size(v["data_offsets"][1]), k) for k, v in top.items())
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as e:
        raise DataError(f"{file}: not a readable safetensors file ({type(e).__name__} in its header)", _disguised(file)) from e
    if long := next((k for k in top if len(k) > MOST_KEY), None):
        raise DataError(f"{file}: not a readable safetensors file (a name of {len(long)} letters: {line(long, 40)})")
    end = max((stop for _, stop, _ in spans), default=0)
    if end != size - 8 - length:
        raise DataError(f"{file}: not a readable safetensors file (its header promises {end} bytes, {size - 8 - length} are there)")
    before = 0
    for begin, stop, key in spans:
        bits = BITS.get(dtypes[key], 0) * prod(shapes[key])
        if begin != before or (bits and bits != 8 * (stop - begin)):
            raise DataError(f"{file}: not a readable safetensors file (its header gives {key} a wrong place)")
        before = stop
    return Header(shapes, dtypes, metadata, twice)


def _size(value: object) -> int:
    """A count of numbers or bytes.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not int or not 0 <= value <= MOST_SIZE:
        raise ValueError(value)
    return value


def _disguised(file: Path) -> str:
    with file.open("rb") as f:
        begin = f.read(4)
    return "it is a pickle under another name; nothing in it was run" if begin[:2] in (b"PK", b"\x80\x02", b"\x80\x04") else ""
