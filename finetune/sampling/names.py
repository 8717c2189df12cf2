"""Names of drawn pictures: `003-17.png` is prompt 3 of its folder from seed 17. Nothing that is there is overwritten. Torch-free."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune import files

_NUMBERED = re.compile(r"(?:grid-(\d{3,})|(\d{3,})-\d+)\.png")


def picture(number: int, seed: int) -> str:
    return f"{number:03d}-{seed}.png"


def used(folder: Path) -> int:
    """The first number beyond those of the pictures and sheets in a folder: the next prompt's."""
    if not folder.is_dir():
        return 0
    numbered = (_NUMBERED.fullmatch(path.name) for path in folder.iterdir())
    return max((int(m[1] or m[2]) + 1 for m in numbered if m), default=0)


def grid(first: Path) -> str:
    """The sheet of pictures of which this is the first: the first sheet of a folder has no number."""
    return "grid.png" if not (first.parent / "grid.png").exists() else f"grid-{first.name.partition('-')[0]}.png"


@contextmanager
def claimed(path: Path) -> Iterator[Path]:
    """An empty file of that name to be replaced; of the next number where one is there, as of a command that draws at the same time.

    Raises:
        ResourceError: the place cannot be written.
    """
    path = _claim(path)
    try:
        yield path
    finally:
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()


def _claim(path: Path) -> Path:
    with files.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.open("xb").close()
                return path
            except FileExistsError:
                path = _next(path)


def _next(path: Path) -> Path:
    """`003-17.png` after `002-17.png`, `grid-001.png` after `grid.png`."""
    before, number, after = re.fullmatch(r"(grid-?)?(\d*)(.*)", path.name).groups(default="")  # type: ignore[union-attr]
    return path.with_name(f"{before and 'grid-'}{int(number or 0) + 1:03d}{after}")


def span(paths: Sequence[Path]) -> str:
    """What was written, for a person."""
    if len(paths) == 1:
        return str(paths[0])
    return f"{len(paths)} pictures to {paths[0].parent}: {paths[0].name} to {paths[-1].name}"
