"""Safetensors files as bytes that depend on their content alone, and with a seal by which damage is found."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import files

if TYPE_CHECKING:
    from torch import Tensor


def safetensors(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose bytes depend on its content alone: the library writes metadata in random order."""
    names, data = _saved(tensors)
    return _head(names, metadata) + data


def _saved(tensors: "Mapping[str, Tensor]") -> tuple[dict[str, Any], memoryview]:
    """What a header says of tensors, and their bytes."""
    from safetensors.torch import save

    plain = memoryview(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
    size = int.from_bytes(plain[:8], "little")
    return json.loads(bytes(plain[8 : 8 + size])), plain[8 + size :]


def _head(names: dict[str, Any], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(header | names, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


SEAL = "sha256"


def sealed(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> bytes:
    """`safetensors` with a hash of all the rest of the file, by which `open_sealed` finds what was damaged."""
    names, data = _saved(tensors)
    digest = hashlib.sha256(_head(names, metadata))
    digest.update(data)
    return _head(names, {**metadata, SEAL: digest.hexdigest()}) + data


def check_seal(path: Path) -> dict[str, str]:
    """The metadata of a file that `sealed` made, which is read through once.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged; or of an older version, which had no seal.
    """
    with files.opened(path) as f:
        try:
            names = json.loads(f.read(min(int.from_bytes(f.read(8), "little"), path.stat().st_size)))
            metadata = dict(names.pop("__metadata__"))
            seal, digest = metadata.pop(SEAL), hashlib.sha256(_head(names, metadata))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            raise ValueError(f"{path} is damaged") from e
        for part in iter(partial(f.read, 2**20), b""):
            digest.update(part)
    if digest.hexdigest() != seal:
        raise ValueError(f"{path} is damaged")
    return metadata


def open_sealed(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """The tensors and the metadata of a file that `sealed` made. Raises as `check_seal`."""
    from safetensors.torch import load_file

    metadata = check_seal(path)
    return load_file(path), metadata
