"""Files of a data set, read so that every error has their name. Torch-free."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from finetune import files
from finetune.data.sample import Listing, Problem
from finetune.errors import DataError, FinetuneError, line
from finetune.text import decoded


@dataclass(frozen=True, slots=True)
class File:
    """A file that is read when it is called; small, as there may be millions."""

    folder: str
    name: str

    def __call__(self) -> bytes:
        return read_file(os.path.join(self.folder, self.name))


MOST = 2**30  # bytes of one file that is read as a whole: a picture, a table of captions


def read_file(path: str) -> bytes:
    """Raises:
    DataError: it cannot be read, or is too large to be what it should.
    """
    try:
        with files.opened(path) as f:
            data = f.read(MOST + 1)
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})", "give pictures that you may read") from e
    if len(data) > MOST:
        raise DataError(f"{path}: has more than {MOST >> 30} GiB", "remove it")
    return data


@contextmanager
def reading(name: str, what: str, hint: str = "the file is damaged; fetch it again") -> Iterator[None]:
    """Whatever a library raises for damaged data, as an error with its name: `what` it should be."""
    try:
        yield
    except FinetuneError:
        raise
    except Exception as e:  # pyarrow, tarfile and datasets raise OSError, ValueError, KeyError, TypeError, SystemError and more
        raise DataError(f"{name}: {what} ({line(str(e) or type(e).__name__)})", hint) from e


def read_caption_file(path: str, name: str, listing: Listing) -> str | None:
    """A text file's contents; None, and a problem under its `name`, where it is not UTF-8."""
    try:
        return decoded(read_file(path))
    except ValueError as e:
        listing.problems.append(Problem(name, str(e), "save the file as UTF-8"))
        return None
