"""Aspect-ratio buckets: the sizes of about so many pixels that pictures are cut to, and which of them suits a picture. Torch-free."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from finetune.data.sample import Sample, Size

STEP = 64  # pixels, where the resolution is that of a real base; an eighth of a smaller one
KEEP = 0.7  # share of every picture's area that a size must keep to be taken for another: 4:3 may be cut square, 16:9 not


def largest_step(resolution: int, multiple: int) -> int:
    """The step of a resolution's buckets: a multiple of what the base needs."""
    return max(1, min(STEP, resolution // 8) // multiple) * multiple


@cache
def bucket_sizes(resolution: int, step: int, low: int, high: int) -> tuple[Size, ...]:
    """The square, and for every width from `low` to `high` by `step` the largest height that keeps within resolution² pixels.

    The same list as kohya's for the same numbers.
    """
    area = resolution**2
    out = {Size(resolution, resolution)}
    for width in range(math.ceil(low / step) * step, high // step * step + 1, step):
        height = min(high, area // width) // step * step
        if height >= low:
            out |= {Size(height, width), Size(width, height)}
    return tuple(sorted(out))


@dataclass(frozen=True)
class Buckets:
    """`sides` are the resolutions, in pixels along a square's side; every picture is shown at each of them."""

    sides: tuple[int, ...]
    step: int
    low: int
    high: int
    square: bool = False  # squares alone
    merge: bool = True  # sizes of fewer pictures than a batch take another's
    enlarge: bool = True  # pictures smaller than their bucket; else they get a bucket of fewer pixels

    def options(self, side: int) -> tuple[Size, ...]:
        return (Size(side, side),) if self.square else bucket_sizes(side, self.step, min(self.low, side), max(self.high, side))

    def choose(self, original: Size, side: int) -> Size:
        """The bucket whose proportions are nearest, as a ratio: a portrait and its landscape get mirror images."""
        fits = _nearest(original, self.options(side))
        if self.enlarge or scale(original, fits) <= 1:
            return fits
        smaller = range(side - self.step, min(self.low, side) - 1, -self.step)
        for s in smaller:
            fits = _nearest(original, self.options(s))
            if scale(original, fits) <= 1:
                return fits
        return fits  # the smallest

    def assign(self, samples: Sequence[Sample], sides: Sequence[int] | None = None, batch: int = 1) -> list[Sample]:
        """Each sample once for each resolution, with its bucket's size; those of fewer draws than a batch are joined."""
        used = tuple(dict.fromkeys(sides or self.sides))  # a small picture may have one size at several resolutions
        chosen = [self._joined(samples, [self.choose(s.original, side) for s in samples], batch) for side in used]
        out = []
        for s, *sizes in zip(samples, *chosen, strict=True):
            out += [replace(s, size=size) for size in dict.fromkeys(sizes)]
        return out

    def _joined(self, samples: Sequence[Sample], sizes: Sequence[Size], batch: int) -> Sequence[Size]:
        """Sizes so that as few as can be have fewer draws in an epoch than a batch; the sparsest first takes the one that keeps most."""
        if batch == 1 or not self.merge:
            return sizes
        members: dict[Size, list[Sample]] = {}
        for s, size in zip(samples, sizes, strict=True):
            members.setdefault(size, []).append(s)
        now = {size: size for size in members}
        while move := self._move(members, batch):
            old, new = move
            members[new] += members.pop(old)
            now = {size: new if at == old else at for size, at in now.items()}
        return [now[size] for size in sizes]

    def _move(self, members: Mapping[Size, Sequence[Sample]], batch: int) -> tuple[Size, Size] | None:
        """The sparsest size that can be another, and that other."""
        draws = {size: sum(s.times for s in sparse) for size, sparse in members.items()}
        few = [size for size in members if draws[size] < batch]
        for size in sorted(few, key=lambda size: (draws[size], size)):
            kept = {other: self._share(members[size], other) for other in members if other != size}
            best = max(kept, key=lambda other: (kept[other], other), default=size)
            if best != size and kept[best] >= KEEP:
                return size, best
        return None

    def _share(self, samples: Sequence[Sample], size: Size) -> float:
        """The share that a size keeps of the picture which it suits least; 0 where it would enlarge what must not be."""
        if not self.enlarge and any(scale(s.original, size) > 1 for s in samples):
            return 0.0
        return min(kept_share(s.original, size) for s in samples)

    def moved(self, samples: Iterable[Sample]) -> list[Sample]:
        """Those with another size than their own proportions choose."""
        return [s for s in samples if s.size not in {self.choose(s.original, side) for side in self.sides}]


def _nearest(original: Size, options: Sequence[Size]) -> Size:
    wanted = math.log(original.width / original.height)
    return min(options, key=lambda o: (round(abs(math.log(o.width / o.height) - wanted), 9), -o.height * o.width, o))


def scale(original: Size, size: Size) -> float:
    """What a picture is resized by so that it covers a size."""
    return max(size.height / original.height, size.width / original.width)


def kept(sample: Sample) -> float:
    """The share of a picture's area that its crop keeps."""
    return kept_share(sample.original, sample.size)


def kept_share(original: Size, size: Size) -> float:
    """The share of a picture's area that is kept when it is cut to a size."""
    return min(1.0, size.height * size.width / (original.height * original.width * scale(original, size) ** 2))
