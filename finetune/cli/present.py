"""Whether the files are there that a command names: said at once, before the libraries are imported that would read them."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from finetune import files
from finetune.adapters.chosen import parse_adapter
from finetune.adapters.header import header_of, tensors_file
from finetune.config import Job
from finetune.errors import DataError
from finetune.families import source
from finetune.text import AUTO


def of_job(job: Job, base: bool) -> None:
    """The places of pictures, the file to start from, and with `base` the base.

    Raises:
        DataError, AccessError: one is missing.
    """
    from finetune.data.scan import check_place

    for place in job.data.places:
        check_place(place.path)
    if job.data.holdout not in (None, AUTO) and not _number(job.data.holdout):
        check_place(job.data.holdout)
    if job.method.start is not None:
        header_of(tensors_file(files.home(job.method.start)))
    if base:
        source.check(job.model.base)


def of_drawing(adapters: Iterable[str], embeddings: Iterable[Path], base: str | None) -> None:
    """Adapter and embedding files, and the base.

    Raises:
        DataError, AccessError: one is missing, or its header is no safetensors file's.
    """
    for text in adapters:
        adapter(parse_adapter(text)[0])
    for path in embeddings:
        header_of(files.home(path))
    if base:
        source.check(base)


def adapter(path: Path) -> None:
    """Raises:
    DataError: it is missing, or its header is no safetensors file's.
    """
    header_of(tensors_file(path))


def _number(text: str) -> bool:
    with suppress(ValueError):
        return float(text) >= 0
    return False


def place(folder: Path) -> None:
    """Raises:
    DataError: no pictures can be there.
    """
    from finetune.data.scan import check_place

    check_place(str(folder))


def run(folder: Path) -> None:
    """Raises:
    DataError: it is no folder of a run.
    """
    if not (folder / "run.yaml").exists():
        raise DataError(f"{folder}: is not the folder of a run", "give the --out of a run")
