"""A picture that is drawn upon: what of it is repainted, and what stays."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageFilter

from finetune import files
from finetune.data import decode, masks
from finetune.data.crop import cut, cut_plane, same_proportions
from finetune.data.encoded import Pixels
from finetune.data.file import read_file
from finetune.data.sample import Sample, Size
from finetune.errors import ConfigError
from finetune.families.family import Family

SOFT = 1 / 64  # of the shorter side: as far into what is repainted, the picture fades out


@dataclass(frozen=True)
class Canvas:
    """`image` RGB, and `mask` of its size, mode L: 255 where it is repainted, 0 where it stays."""

    image: Image.Image
    mask: Image.Image

    def kept(self, drawn: Image.Image) -> Image.Image:
        """What was drawn, with the picture itself where it stays: an autoencoder changes that a little. At the edge one fades into the
        other, on the side of what is repainted."""
        radius = max(1, round(min(self.image.size) * SOFT))
        edge = self.mask.filter(ImageFilter.GaussianBlur(radius)).point([max(0, 2 * level - 255) for level in range(256)])
        return Image.composite(Image.composite(drawn, self.image, edge), self.image, self.mask)

    @property
    def hole(self) -> Image.Image:
        """The picture, grey where it is repainted."""
        return Image.composite(Image.new("RGB", self.image.size, "grey"), self.image, self.mask)


def size_like(width: int, height: int, side: int, multiple: int) -> Size:
    """The size of the proportions of a picture that has about as many pixels as a square of `side`, in multiples of so many."""
    longer = math.sqrt(width / height)
    return Size(*(max(multiple, round(length / multiple) * multiple) for length in (side / longer, side * longer)))


def check_masked(family: Family, image: Path | None, mask: Path | None) -> None:
    """Raises:
    ConfigError: one of the two is given alone, or the base draws from noise alone.
    """
    if image is None and mask is None:
        return
    if image is None or mask is None:
        given, missing = ("--image", "--mask") if mask is None else ("--mask", "--image")
        raise ConfigError(f"{given}: needs {missing}", "white in the mask is repainted, black stays")
    if not family.repaints:
        raise ConfigError(f"--image, --mask: {family.source.id} draws from noise alone", "`ft models` says which bases repaint")


def opened(image: Path, mask: Path) -> Canvas:
    """A picture and its mask from files, upright, in their own size.

    Raises:
        DataError: one cannot be read.
        ConfigError: the mask has other proportions, or nothing of it is white.
    """
    picture = decode.decode_picture(read_file(str(files.home(image))), image.name).image
    plane = decode.decode_picture(read_file(str(files.home(mask))), mask.name, "black").image.convert("L")
    if not same_proportions(Size(plane.height, plane.width), Size(picture.height, picture.width)):
        sizes = f"{plane.width}x{plane.height}, and {image.name} {picture.width}x{picture.height}"
        raise ConfigError(f"--mask {mask.name}: is {sizes}", "make it of the same proportions")
    if not masks.white_share(plane.point(masks.BINARY)):
        raise ConfigError(f"--mask {mask.name}: nothing of it is white, and nothing would be drawn", "white is what is repainted")
    return Canvas(picture, plane)


def fitted_canvas(canvas: Canvas, size: Size) -> Canvas:
    """Resized and cut to a size that is drawn, around the middle.

    Raises:
        ConfigError: nothing is left of what is to be repainted.
    """
    mask = cut_plane(canvas.mask, size, size).point(masks.BINARY)
    if not masks.white_share(mask):
        wider = "give a --width and --height of the picture's proportions, or a larger --resolution"
        raise ConfigError(f"--mask: nothing of it is white when it is cut to {size.width}x{size.height}", wider)
    return Canvas(cut(canvas.image, size)[0], mask)


def of_samples(prompts: Iterable[str], samples: Iterable[Sample], shown: Pixels, side: int) -> dict[str, Canvas]:
    """For prompts that are the caption of a picture: that picture, as a square, with the first of its masks that leaves some of it."""
    by_caption: dict[str, Sample] = {}
    for sample in samples:
        by_caption.setdefault(sample.caption, sample)
    out = {}
    for prompt in prompts:
        if prompt in by_caption:
            square = replace(by_caption[prompt], size=Size(side, side))
            seen = {variant: shown.inpaint_mask(square, variant) for variant in range(len(masks.KINDS))}
            chosen = next((variant for variant, mask in seen.items() if mask and masks.white_share(mask) < 1), 0)
            if mask := seen[chosen]:
                out[prompt] = Canvas(shown.prepared(square, chosen).image, mask)
    return out
