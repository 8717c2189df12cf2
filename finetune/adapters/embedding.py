"""Embedding files: one new token's rows, as `emb_params` for one text encoder, or under a key for each of several."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finetune import files, tensor_files
from finetune.adapters.contract import Contract
from finetune.adapters.keys import EMBEDDED
from finetune.adapters.read import AdapterFile
from finetune.adapters.write import DTYPES, hashed
from finetune.errors import DataError, FinetuneError, line
from finetune.header import header_of
from finetune.text import blank, flaw

MOST_VECTORS = 512  # of one token: what the longest text encoder reads
MOST_LETTERS = 200


@dataclass(frozen=True)
class Embedding:
    """`rows` [vectors, D] by the file's own key, such as `emb_params`."""

    path: Path
    token: str
    rows: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def vectors(self) -> int:
        return len(next(iter(self.rows.values())))

    @property
    def contract(self) -> Contract | None:
        """The inference contract, or None for a file of another tool."""
        return Contract.of(self.metadata)

    def of(self, keys: Mapping[str, str]) -> dict[str, Tensor]:
        """The rows by text encoder; `keys` are the family's `embedding_keys`.

        Raises:
            DataError: a text encoder of the family has none.
        """
        if len(keys) == 1 and len(self.rows) == 1:
            return {part: next(iter(self.rows.values())) for part in keys}
        if lost := [part for part, key in keys.items() if key not in self.rows]:
            raise DataError(f"{self.path}: holds no rows for {lost[0]}, only {', '.join(self.rows)}", "it was made for another family")
        return {part: self.rows[key] for part, key in keys.items()}


def bundled(adapter: AdapterFile) -> list[Embedding]:
    """The embeddings that came along with an adapter, each as if it had a file of its own."""
    rows = {token: {k: t.float() for k, t in tensors.items()} for token, tensors in adapter.embeddings.items()}
    return [Embedding(adapter.path, token, tensors, adapter.metadata) for token, tensors in rows.items()]


def slug(token: str) -> str:
    """The letters and digits of a token, for a file name."""
    return re.sub(r"\W+", "", token) or "token"


def write(path: Path, token: str, rows: Mapping[str, Tensor], dtype: str | None, facts: Mapping[str, str]) -> None:
    """`rows` [vectors, D] by key, in fp32 (`dtype` None: as they are); reads the file back and compares.

    Raises:
        FinetuneError: a number is not finite in the number format.
    """
    cast = {k: t.to(DTYPES[dtype] if dtype else t.dtype) for k, t in rows.items()}
    if not all(bool(torch.isfinite(t).all()) for t in cast.values()):
        raise FinetuneError(f"{path}: not finite as {dtype}; nothing was written", "lower --lr, or --set run.save_dtype=fp32")
    token_facts = {"token": token, "vectors": str(len(next(iter(rows.values()))))}
    files.write_bytes(path, tensor_files.safetensors(cast, hashed(cast, {**facts, **token_facts})))
    back = read(path)
    if back.token != token or any(not torch.equal(t.float(), back.rows[k]) for k, t in cast.items()):
        raise FinetuneError(f"{path}: what was read back differs from what was written", "check the disk")


def read(path: Path) -> Embedding:
    """Ours, diffusers' (the token is the key), or that of other tools (the token is the file's name).

    Raises:
        DataError: missing, not safetensors, or not an embedding.
    """
    metadata = header_of(path).metadata
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise DataError(f"{path}: not a readable safetensors file ({line(str(e))})") from e
    rows = {k: t.float() for k, t in state.items() if t.is_floating_point() and t.ndim in (1, 2)}
    rows = {k: t[None] if t.ndim == 1 else t for k, t in rows.items()}
    known = rows.keys() <= EMBEDDED and bool(rows)
    if rows.keys() != state.keys() or not (known or len(rows) == 1) or len({len(t) for t in rows.values()}) != 1:
        shown = ", ".join(sorted(state)[:3])
        raise DataError(f"{path}: is no embedding file (it holds {shown or 'nothing'})", "adapters are given with --adapter")
    if bad := [k for k, t in rows.items() if not torch.isfinite(t).all()]:
        raise DataError(f"{path}: {bad[0]} holds numbers that are not finite")
    token = metadata.get("token") or (path.stem if known else next(iter(rows)))
    if blank(token) or token != line(token, MOST_LETTERS) or flaw(token):
        raise DataError(f"{path}: its token {line(repr(token), 60)} is no word", f"a word of at most {MOST_LETTERS} letters")
    if (vectors := len(next(iter(rows.values())))) > MOST_VECTORS:
        raise DataError(f"{path}: {vectors} vectors for one token; no text encoder reads more than {MOST_VECTORS}")
    return Embedding(path, token, rows, metadata)
