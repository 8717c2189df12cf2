"""Text from outside, such as captions and names: what can be read of it, and what it must not hold. Torch-free."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

HALF = re.compile(r"[\ud800-\udfff]")  # of a character, which cannot be written as UTF-8
WEIGHT = re.compile(r"\([^()]+:\s*[+-]?(\d+\.?\d*|\.\d+)\s*\)")  # (x:1.3), as other tools weigh words
BRACES = re.compile(r"\{([^{}]*)\}")
AUTO = "auto"  # what a setting says that is left to the program


def blank(text: str) -> bool:
    """Whether there is nothing to read: spaces alone, or characters without width."""
    return all(letter.isspace() or unicodedata.category(letter) == "Cf" for letter in text)


def flaw(text: str) -> str | None:
    """What a text holds that is no text."""
    if HALF.search(text):
        return "half a character (a lone surrogate)"
    return "NUL characters, as UTF-16 without a mark does" if "\0" in text else None


def decoded(data: bytes) -> str:
    """A text file's contents.

    Raises:
        ValueError: it is not UTF-8, or UTF-16 that happens to be.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8 (byte {e.start})") from e
    if wrong := flaw(text):
        raise ValueError(f"not UTF-8: it holds {wrong}")
    return text


Pairs = Callable[[list[tuple[str, Any]]], Any]


def from_json(text: str | bytes, pairs: Pairs | None = None) -> Any:
    """What JSON from outside says; `pairs` makes objects.

    Raises:
        ValueError: it is none, or is nested so deeply that nothing reads it.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def says(text: str, word: str) -> bool:
    """Whether a word, or several, stand in a text, and not as a part of others."""
    return spoken(word).search(text) is not None


def spoken(word: str) -> re.Pattern[str]:
    """Where a word stands in a text, and not as a part of another."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")


def normal(name: str) -> str:
    """A name in one of Unicode's ways to write é: file systems and archives change one for the other."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class UnicodeNames:
    """Known names, found also where they are written in the other of Unicode's ways."""

    def __init__(self, known: Iterable[str]) -> None:
        self.known = frozenset(known)
        self._others: dict[str, list[str]] = {}  # of the few that can be written in two ways
        for name in self.known:
            if not name.isascii():
                self._others.setdefault(normal(name), []).append(name)

    def find(self, name: str) -> str | None:
        """The known name that is meant: itself where it is known, else the only one that differs in the way of writing alone."""
        if name in self.known:
            return name
        alike = self._others.get(normal(name), [])
        return alike[0] if len(alike) == 1 else None
