"""Files of a data set, read so that every error has their name. Torch-free."""

import os
from dataclasses import dataclass

from finetune.data.sample import Found, Problem
from finetune.errors import DataError


@dataclass(frozen=True, slots=True)
class File:
    """A file that is read when it is called; small, as there may be millions."""

    folder: str
    name: str

    def __call__(self) -> bytes:
        return read_file(os.path.join(self.folder, self.name))


def read_file(path: str) -> bytes:
    """Raises:
    DataError: it cannot be read.
    """
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})", "give pictures that you may read") from e


def text(path: str, name: str, found: Found) -> str | None:
    """A text file's contents; None, and a problem under its `name`, where it is not UTF-8."""
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        found.problems.append(Problem(name, f"not UTF-8 (byte {e.start})", "save the file as UTF-8"))
        return None
