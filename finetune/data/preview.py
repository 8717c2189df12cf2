"""A sheet of the crops that training sees, each with the colour of its bucket, its size and its caption. Pixels come from the same code."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from finetune.data import lettering
from finetune.data.crop import cut_plane, fitted
from finetune.data.encoded import Pixels
from finetune.data.sample import Sample

CELL, LINES = 176, 3  # pixels, and lines of text below a picture
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")


class Shown(NamedTuple):
    image: Image.Image
    lines: tuple[str, ...]
    colour: str


def preview_cells(samples: Sequence[Sample], pixels: Pixels) -> list[Shown]:
    """Every variant of every sample; what a loss mask leaves out is darkened, and what is to be repainted is red."""
    sizes = sorted({s.size for s in samples})
    out = []
    for sample in samples:
        for variant in range(pixels.augment.count):
            picture = pixels.prepared(sample, variant)
            image = picture.image
            if picture.loss_mask is not None:
                counts = cut_plane(picture.loss_mask, sample.size, sample.size, pixels.view(sample, variant))
                image = Image.composite(image, _shaded(image, "black"), counts)
            if picture.inpaint_mask is not None:
                image = Image.composite(_shaded(image, "red"), image, picture.inpaint_mask)
            caption = lettering.wrap(sample.captions[variant % len(sample.captions)], CELL, LINES - 1)
            text = (f"{sample.size}" + (f" variant {variant}" if variant else ""), *caption)
            out.append(Shown(image, text, COLOURS[sizes.index(sample.size) % len(COLOURS)]))
    return out


def _shaded(image: Image.Image, colour: str) -> Image.Image:
    return Image.blend(image, Image.new("RGB", image.size, colour), 0.75)


def preview_sheet(cells: Sequence[Shown]) -> Image.Image:
    columns = min(6, len(cells))
    height = CELL + LINES * lettering.LINE + 8
    page = Image.new("RGB", (columns * (CELL + 8), -(-len(cells) // columns) * height), "white")
    pen = ImageDraw.Draw(page)
    for i, cell in enumerate(cells):
        x, y = i % columns * (CELL + 8) + 4, i // columns * height + 4
        image = fitted(cell.image, CELL - 8)
        left, top = x + (CELL - image.width) // 2, y + (CELL - image.height) // 2
        pen.rectangle((left - 4, top - 4, left + image.width + 3, top + image.height + 3), fill=cell.colour)
        page.paste(image, (left, top))
        for line, text in enumerate(cell.lines):
            lettering.write_line(page, (x, y + CELL + line * lettering.LINE), text, cell.colour if line == 0 else "black")
    return page
