"""What the shell offers as the value of a flag: names that are known, and files that fit. Quick: no library, no network."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from finetune.config import ADAPTERS, recipes
from finetune.families.spec import BASES

Offer = tuple[str, str]  # a value, and what it is
MOST = 200  # names of one folder


def words(known: Iterable[str]) -> Callable[[str], list[Offer]]:
    """Completes one of a few words."""
    listed = tuple(known)

    def complete(incomplete: str) -> list[Offer]:
        return [(word, "") for word in listed if word.startswith(incomplete)]

    return complete


def bases(incomplete: str) -> list[Offer]:
    """Short names, files, and folders of diffusers."""
    names = [(name, base.about) for name, base in BASES.items() if name.startswith(incomplete)]
    return names + list(_paths(incomplete, (".safetensors",), "model_index.json"))


def kinds(incomplete: str) -> list[Offer]:
    return [(name, row.about) for name, row in ADAPTERS.items() if name.startswith(incomplete)]


def known_recipes(incomplete: str) -> list[Offer]:
    names = [(name, recipes.about(path)) for name, path in recipes.shipped().items() if name.startswith(incomplete)]
    return names + list(_paths(incomplete, (".yaml", ".yml")))


def adapters(incomplete: str) -> list[Offer]:
    """Adapter files, and folders of runs."""
    return list(_paths(incomplete, (".safetensors",), "run.yaml"))


def runs(incomplete: str) -> list[Offer]:
    return list(_paths(incomplete, (), "run.yaml"))


def _paths(incomplete: str, endings: tuple[str, ...], marker: str = "") -> Iterator[Offer]:
    """Files of some endings, folders that hold `marker`, and with / at their end those that may hold more."""
    front, start = os.path.split(incomplete)
    try:
        entries = sorted(os.scandir(os.path.expanduser(front) or "."), key=lambda e: e.name)
    except OSError:
        return
    named = [e for e in entries if e.name.startswith(start) and (start or not e.name.startswith("."))]
    for entry in named[:MOST]:
        shown = os.path.join(front, entry.name)
        if not entry.is_dir():
            if entry.name.endswith(endings):
                yield shown, "file"
            continue
        if marker and Path(entry.path, marker).exists():
            yield shown, "folder"
        yield shown + os.sep, "folder"
