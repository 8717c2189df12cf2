"""Files of a data set, read so that every error has their name. Torch-free."""

import os
from dataclasses import dataclass

from finetune import files
from finetune.data.sample import Found, Problem
from finetune.errors import DataError
from finetune.text import decoded


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
        return files.read(path)
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})", "give pictures that you may read") from e


def text(path: str, name: str, found: Found) -> str | None:
    """A text file's contents; None, and a problem under its `name`, where it is not UTF-8."""
    try:
        return decoded(read_file(path))
    except ValueError as e:
        found.problems.append(Problem(name, str(e), "save the file as UTF-8"))
        return None
