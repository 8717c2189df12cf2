"""Hashes of a base's files, each read once in a process. Torch-free."""

from functools import cache
from pathlib import Path

from finetune.files import sha256

# Files of the embedded base that were mended without a change to what a run sees, by the hash that earlier runs and caches know:
# the text encoder's config said float16, as which transformers 5 opens it beside networks that diffusers opens as float32.
MENDED = {
    "1c00af14cec11a8e79e2039dd511aef245b47361cea974160f224aa2550f13c6":
    "e9483a5be04ef61fb86d7e16e049c76d47870bb736b8978fb2acd419f8f0c24b",
}  # fmt: skip


def file_hash(path: Path) -> str:
    """sha256 of a file; the Hub's cache names its large files by it, which saves reading them twice."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        digest = blob.name
    else:
        now = path.stat()
        digest = _read_once(path, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    return MENDED.get(digest, digest)


@cache
def _read_once(path: Path, *stamp: int) -> str:
    """A file of some GB is read once in a process, and again when its `stamp` says that it changed."""
    return sha256(path)
