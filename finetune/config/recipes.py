"""The recipes that ship with the package, by name."""

import difflib
from pathlib import Path

from finetune.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
FOLDER = next((p for p in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if p.is_dir()), _PACKAGE / "recipes")


def shipped_recipes() -> dict[str, Path]:
    return {p.stem: p for p in sorted(FOLDER.glob("*.yaml"))}


def recipe_path(recipe: Path) -> Path:
    """A file, or a shipped recipe by its name.

    Raises:
        ConfigError: neither.
    """
    if recipe.exists():
        return recipe
    known = shipped_recipes()
    if recipe.name == str(recipe) and recipe.stem in known:
        return known[recipe.stem]
    close = difflib.get_close_matches(recipe.stem, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(f"--recipe {recipe}: no such file, and no recipe of this name", f"{hint}`ft recipe ls` lists them")


def recipe_summary(path: Path) -> str:
    """The first comment: the command, its memory and its time."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
