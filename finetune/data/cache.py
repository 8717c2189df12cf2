"""Encoded pictures and captions on disk, under the hash of everything they depend on: a stale entry cannot be found.

A *space* is a folder of shards for one encoder. A shard holds rows of one shape: `key` [N, 32], `sum` [N] and tensors [N, ...]. Shards
are written whole under a name made of their keys, so that any number of processes and runs can share a space. They are mapped into
memory, so that rows cost none until they are read; then each is compared with its checksum once.
"""

import hashlib
import json
import sys
import zlib
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune import files

Row = dict[str, Tensor]
ROWS, BYTES = 256, 64 * 2**20  # of a shard, at most
MOST = 2**20
CHECKED = -1  # in the place of a checksum
KEY, KEYS, SUM = "key", np.dtype("S32"), "sum"


def key(**parts: object) -> bytes:
    """32 bytes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


def checksum(name: bytes, row: Mapping[str, Tensor]) -> int:
    """CRC-32 of a row: its key, and its tensors with their names, kinds and shapes."""
    value = zlib.crc32(name)
    for key, tensor in sorted(row.items()):
        value = zlib.crc32(f"{key} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, value)
    return value


class Damaged(KeyError):
    """A row that is no longer what was written, and is forgotten."""


def space(kind: str, **encoder: object) -> Path:
    """The folder for what one encoder makes, such as latents."""
    return files.cache_root() / kind / key(**encoder).hex()[:32]


class Cache:
    """The rows of a space."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shards: list[Row] = []
        self.sums: list[NDArray[np.int64]] = []  # of each shard's rows; CHECKED once a row has been read
        self.seen: dict[str, int] = {}  # file -> its place among the shards
        self.names = np.empty(0, KEYS)  # of all rows, sorted: an array, as there may be millions
        self.places = np.empty(0, np.int64)  # shard * MOST + row
        self.waiting: dict[bytes, Row] = {}
        self.refresh()

    def refresh(self) -> None:
        """Sees what others have written meanwhile; a damaged shard counts as none, which is said, and goes."""
        names, places, lost = [self.names], [self.places], list[Path]()
        for path in sorted(self.root.glob("*.safetensors")):
            if path.stem not in self.seen:
                try:
                    shard = load_file(path)
                    rows, sums = np.ascontiguousarray(shard.pop(KEY).numpy()).view(KEYS)[:, 0], shard.pop(SUM).numpy()
                    if not {len(rows)} == {len(sums), *(len(tensor) for tensor in shard.values())}:
                        raise ValueError("its rows do not fit each other")
                except FileNotFoundError:  # removed meanwhile
                    continue
                except (OSError, SafetensorError, LookupError, ValueError, TypeError, RuntimeError):
                    lost.append(path)
                    continue
                names.append(rows)
                self.sums.append(sums.copy())
                self.seen[path.stem] = len(self.shards)
                places.append(len(self.shards) * MOST + np.arange(len(names[-1])))
                self.shards.append(shard)
        self._lose(lost)
        if len(names) > 1:
            self.names, first = np.unique(np.concatenate(names), return_index=True)
            self.places = np.concatenate(places)[first]

    def _lose(self, shards: Sequence[Path]) -> None:
        if shards:
            what = shards[0].name if len(shards) == 1 else f"{len(shards)} files"
            print(f"note: {what} in {self.root}: damaged, or of an older version; what they held is made anew", file=sys.stderr)
        for path in shards:
            with suppress(OSError):
                path.unlink()

    def _place(self, name: bytes) -> tuple[int, int] | None:
        """Shard and row."""
        i = int(self.names.searchsorted(name))
        if i == len(self.names) or self.names[i].ljust(32, b"\0") != name:  # NumPy takes zeros at the end for none
            return None
        return divmod(int(self.places[i]), MOST)

    def __contains__(self, name: bytes) -> bool:
        return name in self.waiting or self._place(name) is not None

    def __getitem__(self, name: bytes) -> Row:
        """A row's tensors, which are the shard's: not to be changed.

        Raises:
            Damaged: it is not what was written, and from now on not there.
        """
        if name in self.waiting:
            return self.waiting[name]
        if (place := self._place(name)) is None:
            raise KeyError(name.hex())
        shard, i = place
        row = {k: v[i] for k, v in self.shards[shard].items()}
        if self.sums[shard][i] != CHECKED:
            if checksum(name, row) != self.sums[shard][i]:
                self._forget(name, shard)
                raise Damaged(name.hex())
            self.sums[shard][i] = CHECKED
        return row

    def _forget(self, name: bytes, shard: int) -> None:
        """The row; and the file that it is in, whose other rows are still read from memory here, and made anew elsewhere."""
        stays = self.names != np.array(name, KEYS)
        self.names, self.places = self.names[stays], self.places[stays]
        stem = next((stem for stem, place in self.seen.items() if place == shard), None)
        if stem is not None:
            self._lose([self.root / f"{stem}.safetensors"])
            del self.seen[stem]

    def size(self, name: bytes) -> int:
        """Bytes of a row, which is not read for it; 0 where it is not there."""
        if name in self.waiting or (place := self._place(name)) is None:
            return sum(t.nbytes for t in self.waiting.get(name, {}).values())
        return sum(v[place[1]].nbytes for v in self.shards[place[0]].values())

    def sound(self, name: bytes) -> bool:
        """Whether the row is there, and is what was written."""
        try:
            self[name]
        except KeyError:
            return False
        return True

    def put(self, name: bytes, row: Mapping[str, Tensor]) -> None:
        """A row to be written with the others of its shape; `flush` must follow the last."""
        self.waiting[name] = {k: v.detach().cpu() for k, v in row.items()}
        size = sum(v.nbytes for v in row.values())
        if len(self.waiting) >= ROWS or len(self.waiting) * size >= BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what waits, one shard for each shape."""
        shapes: dict[object, list[bytes]] = {}
        for name, row in self.waiting.items():
            shapes.setdefault(tuple((k, v.shape, v.dtype) for k, v in sorted(row.items())), []).append(name)
        for names in shapes.values():
            self._write(names, [self.waiting[n] for n in names])
        self.waiting = {}
        self.refresh()

    def _write(self, names: Sequence[bytes], rows: Sequence[Row]) -> Path:
        stacked = {k: torch.stack([row[k] for row in rows]) for k in rows[0]}
        stacked[SUM] = torch.tensor([checksum(name, row) for name, row in zip(names, rows, strict=True)])
        stacked[KEY] = torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8).view(len(names), 32)
        path = self.root / f"{hashlib.sha256(b''.join(names)).hexdigest()[:32]}.safetensors"
        files.write(path, lambda p: save_file(stacked, p))
        self.seen.pop(path.stem, None)  # one of that name lacked these keys: it was damaged
        return path

    def keep(self, wanted: Container[bytes]) -> tuple[int, int]:
        """Removes every row that is not wanted; returns how many rows, and bytes on disk, went."""
        held: dict[str, dict[int, bytes]] = {stem: {} for stem in self.seen}
        stems = {place: stem for stem, place in self.seen.items()}
        for name, place in zip(self.names.tolist(), self.places.tolist(), strict=True):
            if place // MOST in stems:
                held[stems[place // MOST]][place % MOST] = name.ljust(32, b"\0")
        rows, size = 0, 0
        for stem, names in held.items():
            left = [i for i, name in names.items() if name in wanted]
            if names and len(left) == len(names):
                continue
            left = [i for i in left if self.sound(names[i])]
            path, rows = self.root / f"{stem}.safetensors", rows + len(names) - len(left)
            size += path.stat().st_size if path.exists() else 0
            if left:  # the rest moves to a shard of its own
                size -= self._write([names[i] for i in left], [self[names[i]] for i in left]).stat().st_size
            path.unlink(missing_ok=True)
        return rows, size
