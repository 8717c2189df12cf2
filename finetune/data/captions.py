"""What is said of a picture: its own captions or one for all, a trigger in front, and a finite number of variants. Torch-free."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetune import randomness
from finetune.data.sample import Item
from finetune.text import BRACES, blank, says


def tags(caption: str) -> list[str]:
    """What stands between its commas."""
    return [t.strip() for t in caption.split(",") if t.strip()]


@dataclass(frozen=True)
class Wording:
    """How captions are made: one for all, or the pictures' own with `trigger` in front of those that lack it and all of `tokens`.

    A picture without a caption is said with each of `templates`, in which `{}` is the trigger. Where tags are shuffled or dropped or
    wildcards drawn, each caption has `variants` forms, functions of (seed, picture, number): finite, so that each is encoded once.
    The first is the caption as it was written, with the first word of each wildcard.
    """

    caption: str | None = None  # {name} is the picture's file name in words, {folder} its folder's
    trigger: str | None = None
    templates: tuple[str, ...] = ("{}",)
    tokens: tuple[str, ...] = ()
    prefix: str = ""
    suffix: str = ""
    shuffle: bool = False
    keep: int = 0  # tags at the front that are neither shuffled nor dropped
    drop: float = 0.0  # share of tags
    wildcards: bool = False  # {red|blue}
    variants: int = 1
    seed: int = 0
    silent: bool = False  # what trains reads no text: nothing is said, and nothing has to be

    def captions(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Of a picture whose own captions are `captions`, without variants; none where there is nothing to say."""
        if captions := [c for c in captions if not blank(c)]:
            return tuple(self._summon(self._join(self.prefix, c, self.suffix)) for c in captions)
        if self.trigger:
            return tuple(self._join(self.prefix, t.replace("{}", self.trigger), self.suffix) for t in self.templates)
        return ()

    def every(self, item: Item, captions: Sequence[str], content: str) -> tuple[str, ...]:
        """All that may be said of a picture, its variants included."""
        if self.silent:
            return ("",)
        captions = [fill_template(self.caption, item)] if self.caption is not None else list(captions)
        varied: list[str] = []
        for variant in range(self._count):
            varied += [self._variant(c, content, i, variant) for i, c in enumerate(captions)]
        return self.captions(varied)

    @property
    def _count(self) -> int:
        return self.variants if self.shuffle or self.drop or self.wildcards else 1

    def _variant(self, caption: str, content: str, which: int, variant: int) -> str:
        key = (self.seed, "wording", content, which, variant)
        if self.wildcards:
            caption = _choose(caption, *key, plain=variant == 0)
        if variant == 0 or not (self.shuffle or self.drop):
            return caption
        parts = tags(caption)
        kept, rest = parts[: self.keep], parts[self.keep :]
        numbered = [(i, tag) for i, tag in enumerate(rest) if randomness.uniform(*key, "drop", i) >= self.drop]
        if self.shuffle:
            numbered.sort(key=lambda pair: randomness.number(*key, "shuffle", pair[0]))
        return ", ".join([*kept, *(tag for _, tag in numbered)] or parts[:1])

    def _summon(self, caption: str) -> str:
        if not self.trigger:
            return caption
        named = any(says(caption, word) for word in (self.trigger, *self.tokens))
        return caption if named else f"{self.trigger}, {caption}"

    @staticmethod
    def _join(prefix: str, caption: str, suffix: str) -> str:
        """With one space between, but none before a comma that the suffix begins with."""
        front = f"{prefix.strip()} {caption}" if prefix.strip() else caption
        gap = "" if suffix.lstrip().startswith(",") else " "
        return front + gap + suffix.strip() if suffix.strip() else front


def _choose(caption: str, *key: randomness.Key, plain: bool) -> str:
    """Every {a|b|c} replaced by one of its words; from the inside out, so that they nest."""
    number = 0
    while (braces := BRACES.search(caption)) is not None:
        options = braces[1].split("|")
        chosen = options[0 if plain else randomness.number(*key, "wildcard", number) % len(options)]
        caption = caption[: braces.start()] + chosen + caption[braces.end() :]
        number += 1
    return " ".join(caption.split())


def fill_template(template: str, item: Item) -> str:
    """A caption for all, with what is the picture's own put in."""
    return template.replace("{name}", item.words).replace("{folder}", item.concept)


def in_words(stem: str) -> str:
    """`red_fox-01` -> `red fox`: a name as words, without the number at its end."""
    return re.sub(r"\s*\(?\d+\)?$", "", re.sub(r"[_\-\s]+", " ", stem)).strip() or stem
