"""Encoded pictures and captions on disk, under the hash of everything they depend on: a stale entry cannot be found."""

import hashlib
import json
import os
from pathlib import Path

import platformdirs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune import files


def default_root() -> Path:
    return Path(os.environ.get("FT_CACHE") or Path(platformdirs.user_cache_dir("finetune", appauthor=False)))


class Cache:
    """Tensors by content key. Entries are written whole, so any number of processes can share the folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.hits, self.misses = root, 0, 0

    @staticmethod
    def key(**parts: object) -> str:
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry, or None; a damaged one counts as none."""
        try:
            entry = load_file(self.path(key))
        except (OSError, SafetensorError):
            self.misses += 1
            return None
        self.hits += 1
        return entry

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        files.write(self.path(key), lambda p: save_file(contiguous, p))
