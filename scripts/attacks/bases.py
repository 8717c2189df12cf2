"""Bases made worse: a folder's configs, a single file's header, a pickle."""

import io
import json
import math
import struct
from pathlib import Path
from typing import Any

from . import scenes
from .folders import unpacked
from .seeds import packed

SD_WIDTH = 768  # of the text that Stable Diffusion 1 reads


def base_seeds(place: scenes.Place) -> list[bytes]:
    return packed(place.root / "base")


def read_base(place: scenes.Place, folder: Path, data: bytes) -> None:
    _plan(place, unpacked(place.root / "base", folder, data))


def _plan(place: scenes.Place, base: Path, **model: Any) -> None:
    """As `--dry-run` does, which loads no weights."""
    from finetune.config.precedence import parse
    from finetune.training import plan

    data = {"path": str(place.root / "imgs"), "resolution": 32}
    plan.plan(parse({"model": {"base": str(base)} | model, "data": data, "optim": {"steps": 1, "batch": 2}}))


def single_seeds(place: scenes.Place) -> list[bytes]:
    """The header of a base in one file, as wide as a base that is known."""
    (file,) = (place.root / "single").glob("*.safetensors")
    with file.open("rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    at = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if "attn2.to_k" in name or "attn2.to_v" in name:
            entry["shape"][1] = SD_WIDTH
        size = math.prod(entry["shape"]) * (2 if entry["dtype"] == "F16" else 4)
        entry["data_offsets"], at = [at, at + size], at + size
    return [json.dumps(header).encode()]


def read_single(place: scenes.Place, folder: Path, data: bytes) -> None:
    """With as many bytes behind the header as it asks for, up to a gigabyte of nothing."""
    path = folder / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + min(2**30, _end(data)))
    _plan(place, path)


def _end(header: bytes) -> int:
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        return max(0, *(end for end in ends if isinstance(end, int)), 0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 0


class Payload:
    """What a hostile pickle holds: a call."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


def pickle_seeds() -> list[bytes]:
    """A small base in a pickle, in both of torch's forms, and one that would run a program."""
    import torch

    out = []
    for value in ({"state_dict": {"a": torch.ones(2, 3), "b.c": torch.zeros(4, dtype=torch.float16)}}, {"a": Payload()}):
        for new in (True, False):
            data = io.BytesIO()
            torch.save(value, data, _use_new_zipfile_serialization=new)
            out.append(data.getvalue())
    return out


def read_pickle(folder: Path, data: bytes) -> None:
    from finetune.families import single_file

    path = folder / "a.ckpt"
    path.write_bytes(data)
    single_file.unpickle(path)
