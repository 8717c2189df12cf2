"""What the shell offers as the value of a flag: names that are known, and files that fit. Quick: no library, no network."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from finetune.config import ADAPTERS, recipes
from finetune.families.catalogue import BASES
from finetune.run_folder import RECORD

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
    return _with_paths(names, incomplete, (".safetensors",), "model_index.json")


def kinds(incomplete: str) -> list[Offer]:
    return [(name, row.about) for name, row in ADAPTERS.items() if name.startswith(incomplete)]


def known_recipes(incomplete: str) -> list[Offer]:
    names = [(name, recipes.recipe_summary(path)) for name, path in recipes.shipped_recipes().items() if name.startswith(incomplete)]
    return _with_paths(names, incomplete, (".yaml", ".yml"))


def adapters(incomplete: str) -> list[Offer]:
    """Adapter files, and folders of runs."""
    return _with_paths([], incomplete, (".safetensors",), RECORD)


def autoencoders(incomplete: str) -> list[Offer]:
    """Their files, and folders of diffusers."""
    return _with_paths([], incomplete, (".safetensors",), "config.json")


def run_folders(incomplete: str) -> list[Offer]:
    return _with_paths([], incomplete, (), RECORD)


def _with_paths(names: list[Offer], incomplete: str, endings: tuple[str, ...], marker: str = "") -> list[Offer]:
    """The names, files of some endings, and folders that hold `marker`; with other folders, which may hold more. Nothing where nothing
    fits: the shell then completes paths by itself, and knows that a folder's name goes on."""
    fitting, folders = list(names), list[Offer]()
    for shown, entry in _entries(incomplete):
        if not entry.is_dir():
            fitting += [(shown, "file")] if entry.name.endswith(endings) else []
        elif marker and Path(entry.path, marker).exists():
            fitting.append((shown, "folder"))
        else:
            folders.append((shown + os.sep, "folder"))
    return fitting + folders if fitting else []


def _entries(incomplete: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What lies where a path goes on, as it would be typed."""
    front, start = os.path.split(incomplete)
    try:
        entries = sorted(os.scandir(os.path.expanduser(front) or "."), key=lambda e: e.name)
    except OSError:
        return
    named = [e for e in entries if e.name.startswith(start) and (start or not e.name.startswith("."))]
    for entry in named[:MOST]:
        yield os.path.join(front, entry.name), entry
