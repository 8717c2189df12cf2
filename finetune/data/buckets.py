"""Aspect-ratio buckets: the sizes of about so many pixels that pictures are cut to, and which of them suits a picture. Torch-free."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from finetune.data.sample import Sample, Size

STEP = 64  # pixels, where the resolution is that of a real base; an eighth of a smaller one


def largest_step(resolution: int, multiple: int) -> int:
    """The step of a resolution's buckets: a multiple of what the base needs."""
    return max(1, min(STEP, resolution // 8) // multiple) * multiple


@cache
def sizes(resolution: int, step: int, low: int, high: int) -> tuple[Size, ...]:
    """The square, and for every width from `low` to `high` by `step` the largest height that keeps within resolution² pixels.

    The same list as kohya's for the same numbers.
    """
    area = resolution**2
    widths = range(math.ceil(low / step) * step, high // step * step + 1, step)
    pairs = ((w, min(high, area // w) // step * step) for w in widths)
    made = {(resolution, resolution)} | {p for w, h in pairs if h >= low for p in ((w, h), (h, w))}
    return tuple(sorted(Size(h, w) for w, h in made))


@dataclass(frozen=True)
class Buckets:
    """`sides` are the resolutions, in pixels along a square's side; every picture is shown at each of them."""

    sides: tuple[int, ...]
    step: int
    low: int
    high: int
    square: bool = False  # squares alone
    enlarge: bool = True  # pictures smaller than their bucket; else they get a bucket of fewer pixels

    def options(self, side: int) -> tuple[Size, ...]:
        return (Size(side, side),) if self.square else sizes(side, self.step, min(self.low, side), max(self.high, side))

    def choose(self, original: Size, side: int) -> Size:
        """The bucket whose proportions are nearest, as a ratio: a portrait and its landscape get mirror images."""
        fits = _nearest(original, self.options(side))
        if self.enlarge or _scale(original, fits) <= 1:
            return fits
        smaller = range(side - self.step, min(self.low, side) - 1, -self.step)
        options = [Size(s, s) if self.square else _nearest(original, self.options(s)) for s in smaller]
        return next((o for o in options if _scale(original, o) <= 1), options[-1] if options else fits)

    def assign(self, samples: Sequence[Sample], sides: Sequence[int] | None = None) -> list[Sample]:
        """Each sample once for each resolution, with its bucket's size."""
        used = tuple(dict.fromkeys(sides or self.sides))  # a small picture may have one size at several resolutions
        return [replace(s, size=size) for s in samples for size in dict.fromkeys(self.choose(s.original, side) for side in used)]


def _nearest(original: Size, options: Sequence[Size]) -> Size:
    wanted = math.log(original.width / original.height)
    return min(options, key=lambda o: (round(abs(math.log(o.width / o.height) - wanted), 9), -o.height * o.width, o))


def _scale(original: Size, size: Size) -> float:
    return max(size.height / original.height, size.width / original.width)


def kept(sample: Sample) -> float:
    """The share of a picture's area that its crop keeps."""
    scale = _scale(sample.original, sample.size)
    return min(1.0, sample.size.height * sample.size.width / (sample.original.height * sample.original.width * scale**2))
