"""The bases that this user has trained on, by the names that he gave them: a file from elsewhere may name these too, and no others that
are not known. Torch-free."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from finetune import files
from finetune.errors import ResourceError
from finetune.families.source import known_name


def remember(base: str) -> None:
    """Where the cache cannot be written, nothing is remembered."""
    if known_name(base) is None and not trusted(base):
        with suppress(ResourceError, OSError):
            files.write_text(_place(base), base)


def trusted(base: str) -> bool:
    """Whether it is known, or the user has trained on it."""
    return known_name(base) is not None or _place(base).is_file()


def _place(base: str) -> Path:
    return files.cache_root() / "trusted" / hashlib.sha256(os.fsencode(base)).hexdigest()[:32]
