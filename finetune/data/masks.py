"""Masks of what is to be repainted, drawn for a picture: white is repainted, black is kept. Functions of the picture and a number."""

import math
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from finetune import randomness

if TYPE_CHECKING:
    from finetune.data.sample import Size

# In turn, so that of four masks of a picture one is of each kind. A quarter that is white all over is what Stable Diffusion's own
# inpainting model was trained with (its model card); strokes and boxes are those of LaMa (Suvorov et al. 2022, arXiv:2109.07161), and
# borders are what a picture is continued beyond.
KINDS = ("strokes", "boxes", "whole", "borders")
LEAST, MOST = 0.05, 0.9  # of the area, that strokes, boxes and borders repaint
BINARY = [0] * 128 + [255] * 128  # of grey levels: from half on it is repainted, as pipelines read masks
TRIES = 50  # one in ten masks is outside of these


def drawn_mask(content: str, number: int, size: "Size") -> Image.Image:
    """Mask `number` of a picture with this hash, of `size`, mode L: 0 or 255. The same on every machine, whatever else is drawn."""
    kind = KINDS[(randomness.number("mask kind", content) + number) % len(KINDS)]
    whole = Image.new("L", (size.width, size.height), 255)
    if kind == "whole":
        return whole
    for attempt in range(TRIES):
        mask = _DRAW[kind](_Chance("mask", kind, content, number, attempt), size)
        if LEAST <= white_share(mask) <= MOST:
            return mask
    return whole  # of pictures a few pixels wide


def white_share(mask: Image.Image) -> float:
    """The part of a mask's area that is white."""
    return mask.histogram()[255] / (mask.width * mask.height)


class _Chance:
    """Numbers one after the other, functions of a key."""

    def __init__(self, *key: randomness.Key) -> None:
        self.numbers: Iterator[float] = (randomness.uniform(*key, i) for i in count())

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self.numbers)

    def whole(self, low: int, high: int) -> int:
        """Both ends included."""
        return low + int(next(self.numbers) * (high - low + 1))


def _strokes(chance: _Chance, size: "Size") -> Image.Image:
    """One to four broad lines that wander, round at their turns."""
    mask = Image.new("L", (size.width, size.height), 0)
    pen, short = ImageDraw.Draw(mask), min(size)
    for _ in range(chance.whole(1, 4)):
        x, y = chance.between(0, size.width), chance.between(0, size.height)
        width, angle = max(1, round(short * chance.between(0.08, 0.25))), chance.between(0, 2 * math.pi)
        for _ in range(chance.whole(2, 8)):
            angle += chance.between(-1.2, 1.2)
            length = short * chance.between(0.1, 0.4)
            before, (x, y) = (x, y), (x + length * math.cos(angle), y + length * math.sin(angle))
            pen.line((*before, x, y), fill=255, width=width)
            for px, py in (before, (x, y)):
                pen.ellipse((px - width / 2, py - width / 2, px + width / 2, py + width / 2), fill=255)
    return mask


def _boxes(chance: _Chance, size: "Size") -> Image.Image:
    """One to three rectangles."""
    mask = Image.new("L", (size.width, size.height), 0)
    pen = ImageDraw.Draw(mask)
    for _ in range(chance.whole(1, 3)):
        width, height = size.width * chance.between(0.2, 0.7), size.height * chance.between(0.2, 0.7)
        left, top = chance.between(0, size.width - width), chance.between(0, size.height - height)
        pen.rectangle((left, top, left + width, top + height), fill=255)
    return mask


def _borders(chance: _Chance, size: "Size") -> Image.Image:
    """All but a rectangle that keeps away from some of the edges."""
    width, height = max(1, round(size.width * chance.between(0.3, 1))), max(1, round(size.height * chance.between(0.3, 1)))
    left = chance.whole(0, 2) * (size.width - width) // 2
    top = chance.whole(0, 2) * (size.height - height) // 2
    mask = Image.new("L", (size.width, size.height), 255)
    mask.paste(0, (left, top, left + width, top + height))
    return mask


_DRAW = {"strokes": _strokes, "boxes": _boxes, "borders": _borders}
