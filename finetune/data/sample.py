"""A training picture as the data knows it, and what a person should be told of a set of them. Torch-free."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

from finetune.data.inputs import LOSS_MASK, PICTURE, Input
from finetune.errors import DataError

SHOWN = 5  # names in a message


class Size(NamedTuple):
    """Of a picture in pixels; the height first, as Stable Diffusion XL is told it."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"  # as people write it


UNKNOWN = Size(0, 0)


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of a source, before anything looked at it."""

    name: str  # within its source, with forward slashes
    read: Callable[[], bytes]
    stamp: str  # what tells without reading it, among all of its place, that it has not changed: name, size, time
    captions: tuple[str, ...] = ()  # its own
    words: str = ""  # its name as words, for a caption's {name}
    repeats: int = 1
    concept: str = ""  # what its folder is called after the number of repeats
    beside: tuple[tuple[str, Callable[[], bytes]], ...] = ()  # names of inputs, and files that lie beside it for them


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture that may be drawn for a batch. `size` is what it is cut to, once the base is known."""

    name: str
    inputs: Mapping[str, Input]  # by the names in data/inputs.py; "picture" is always there
    captions: tuple[str, ...]  # one is drawn each time
    original: Size = UNKNOWN  # upright
    weight: float = 1.0  # of its loss
    times: Fraction = Fraction(1)  # how often an epoch shows it
    size: Size = UNKNOWN

    @property
    def content(self) -> str:
        """sha256 of the picture's file."""
        return self.inputs[PICTURE].content

    @property
    def contents(self) -> dict[str, str]:
        """Of every input by name."""
        return {name: file.content for name, file in self.inputs.items()}

    def read(self) -> bytes:
        """The picture's file."""
        file = self.inputs[PICTURE].read
        assert file is not None  # noqa: S101  a picture is a file of its own
        return file()

    @property
    def caption(self) -> str:
        """The one that stands for all of them where nothing is drawn, as in measuring."""
        return self.captions[0]


class Problem(NamedTuple):
    """What keeps a picture from training."""

    name: str
    text: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


@dataclass
class Listing:
    """A source's samples in the order of their names, and what a person should know about it."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)  # with which no run begins
    dropped: dict[str, str] = field(default_factory=dict)  # file -> why; a run goes without it
    notes: dict[str, list[str]] = field(default_factory=dict)  # what was converted, or is worth knowing -> files

    def note(self, text: str, name: str) -> None:
        """Notes `text` of the file `name`."""
        self.notes.setdefault(text, []).append(name)

    def add(self, other: "Listing", prefix: str = "") -> None:
        """Takes in another source's, whose names get `prefix` in front."""
        self.samples += [replace(s, name=prefix + s.name) for s in other.samples]
        self.problems += [p._replace(name=prefix + p.name) for p in other.problems]
        self.dropped |= {f"{prefix}{name}": why for name, why in other.dropped.items()}
        for text, names in other.notes.items():
            self.notes.setdefault(text, []).extend(prefix + name for name in names)

    def refuse(self) -> None:
        """Raises:
        DataError: there are problems; it names the first of them.
        """
        if not self.problems:
            return
        kinds: dict[str, list[str]] = {}
        for p in self.problems:
            kinds.setdefault(p.text, []).append(p.name)
        shown = [f"{some(names)}: {text}" for text, names in list(kinds.items())[:SHOWN]]
        more = ["more, which `ft data check` lists"] if len(kinds) > SHOWN else []
        raise DataError("; ".join(shown + more), self.problems[0].hint)

    def describe(self, say: Callable[[str], None]) -> None:
        """Says what was noted, each with its number of files, and which files were dropped: 20 by name, with why."""
        for text, names in sorted(self.notes.items()):
            say(f"  {len(names)} {text}")
        for name, why in list(self.dropped.items())[:20]:
            say(f"  dropped {name}: {why}")
        if len(self.dropped) > 20:
            say(f"  dropped {len(self.dropped) - 20} more")


@dataclass
class Pictures:
    """The sides of the data: to train on, the class pictures beside them, and held out; in this order in `all`."""

    listing: Listing
    train: list[Sample]
    held: list[Sample]
    classes: list[Sample] = field(default_factory=list)

    @property
    def all(self) -> list[Sample]:
        """Those to train on, then the class pictures, then those held out."""
        return [*self.train, *self.classes, *self.held]

    @property
    def captions(self) -> list[str]:
        """Every one that may be said, once."""
        captions = {s.caption for s in self.held}
        for s in (*self.train, *self.classes):
            captions.update(s.captions)
        return sorted(captions)

    def fingerprint(self) -> str:
        """A hash of every picture's bytes, caption and share, whatever the files are called and wherever they lie."""
        sides = [sorted(map(_facts, side)) for side in (self.train, self.classes, self.held)]
        return hashlib.sha256(json.dumps(sides).encode()).hexdigest()

    def record(self) -> dict[str, list[str]]:
        """By name, what `changed` tells two sets apart by: the side, a hash of the bytes, and one of all that is said and done with it."""
        sides = {"train": self.train, "class": self.classes, "held out": self.held}
        out: dict[str, list[str]] = {}
        for side, samples in sides.items():
            for s in samples:
                row = out.setdefault(s.name, [side, s.content[:16], ""])
                row[2] = hashlib.sha256(json.dumps([row[2], _facts(s)]).encode()).hexdigest()[:16]
        return out

    def describe(self, say: Callable[[str], None]) -> None:
        """What was found, converted and dropped; nothing is silent."""
        say(f"pictures: {len(self.train)} to train on" + (f", {len(self.held)} held out" if self.held else ""))
        self.listing.describe(say)


def _facts(s: Sample) -> tuple[str, tuple[str, ...], float, str, tuple[int, ...], str]:
    beside = [s.contents.get(LOSS_MASK, "")]  # the first that there was has no name in older records
    beside += [f"{name} {content}" for name, content in sorted(s.contents.items()) if name not in (PICTURE, LOSS_MASK)]
    return s.content, s.captions, s.weight, str(s.times), tuple(s.size), "\n".join(beside)


def changed(before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> str:
    """How a set of pictures differs from what it was, by `Pictures.record`, with names."""
    both = [name for name in now if name in before]
    kinds = {
        "gone": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "another picture": [name for name in both if before[name][1] != now[name][1]],
        "on another side": [name for name in both if before[name][1] == now[name][1] and before[name][0] != now[name][0]],
        "with another caption, mask, size or share": [
            name for name in both if before[name][:2] == now[name][:2] and before[name][2] != now[name][2]
        ],
    }
    changes = []
    for what, names in kinds.items():
        if names:
            verb = "is" if len(names) == 1 else "are"
            changes.append(f"{some(names)} {verb} {what}")
    return "; ".join(changes)


def some(names: Iterable[str], most: int = SHOWN) -> str:
    """The first of many names, on one line."""
    names = [name.replace("\n", "?") for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
