"""What of a picture is trained on: cut to its bucket's size, perhaps mirrored, moved or tinted, in a finite number of variants."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageEnhance

from finetune import randomness
from finetune.data.buckets import scale
from finetune.data.sample import Size

if TYPE_CHECKING:
    from torch import Tensor

ALIKE = 0.02  # share by which a mask's proportions may differ from its picture's
Box = tuple[float, float, float, float]


class Crop(NamedTuple):
    """Where a training picture was cut, in the order in which Stable Diffusion XL is told (heights before widths); in pixels."""

    original_height: int
    original_width: int
    top: int  # of the resized (and mirrored) picture
    left: int
    height: int
    width: int


class View(NamedTuple):
    """One variant of a picture: which part, mirrored or not, which tint. The default is what is measured on."""

    flip: bool = False
    across: float = 0.5  # where the crop lies in what is left over: 0 is left, 1 is right
    down: float = 0.5
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # brightness, contrast, saturation


PLAIN = View()


@dataclass(frozen=True)
class Augment:
    """A finite set of variants, the same for every seed, so that each is encoded once and kept."""

    flip: bool = False
    crop: bool = False
    tint: float = 0.0  # largest change of brightness, contrast and saturation, as a share
    variants: int = 4  # of crop, tint and mask; mirrored ones come on top
    masks: bool = False  # whether each variant has an inpainting mask of its own

    @property
    def count(self) -> int:
        return (self.variants if self.crop or self.tint or self.masks else 1) * (2 if self.flip else 1)

    def numbered(self, variant: int) -> tuple[int, bool]:
        """The number of a variant's crop and tint, and whether it is mirrored."""
        return (variant // 2, bool(variant % 2)) if self.flip else (variant, False)

    def view(self, content: str, variant: int) -> View:
        """A variant of a picture; number 0 is the plain one."""
        number, mirrored = self.numbered(variant)

        def place(axis: str) -> float:
            return randomness.uniform("crop", axis, content, number) if self.crop and number else 0.5

        def factor(what: str) -> float:
            return 1 + self.tint * (2 * randomness.uniform("tint", what, content, number) - 1) if self.tint and number else 1.0

        return View(mirrored, place("across"), place("down"), (factor("brightness"), factor("contrast"), factor("saturation")))


def box(original: Size, size: Size, view: View = PLAIN) -> tuple[Box, Crop]:
    """The part of the picture (mirrored already) that covers `size`: left, upper, right, lower in its pixels, and the crop."""
    by = scale(original, size)
    height, width = max(size.height, round(original.height * by)), max(size.width, round(original.width * by))
    top, left = round((height - size.height) * view.down), round((width - size.width) * view.across)
    y, x = original.height / height, original.width / width
    part = (left * x, top * y, min((left + size.width) * x, original.width), min((top + size.height) * y, original.height))
    return part, Crop(*original, top, left, *size)


def same_proportions(mask: Size, picture: Size) -> bool:
    """Whether a mask can be a picture's, of whatever scale."""
    return abs(mask.width * picture.height / (mask.height * picture.width) - 1) <= ALIKE


def cut(image: Image.Image, size: Size, view: View = PLAIN) -> tuple[Image.Image, Crop]:
    """Mirrored, resized to cover `size`, cropped, tinted: in this order. No side is ever stretched by more than a pixel."""
    image = _mirrored(image, view)
    part, crop = box(Size(image.height, image.width), size, view)
    resized = image.resize((size.width, size.height), Image.Resampling.LANCZOS, part)
    for enhance, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), view.tint, strict=True):
        resized = resized if factor == 1 else enhance(resized).enhance(factor)
    return resized, crop


def cut_plane(mask: Image.Image, size: Size, grid: Size, view: View = PLAIN) -> Image.Image:
    """A mask, mode L, cut as its picture is to `size`, on a `grid` of cells: the share of each one's area that is white, in 255ths. It may
    be of another scale than the picture."""
    mask = _mirrored(mask, view)
    part, _ = box(Size(mask.height, mask.width), size, view)
    return mask.resize((grid.width, grid.height), Image.Resampling.BOX, part)


def cut_mask(mask: Image.Image, size: Size, grid: Size, view: View = PLAIN) -> "Tensor":
    """The same as [1, h, w] in [0, 1]."""
    return to_plane(cut_plane(mask, size, grid, view))


def to_plane(mask: Image.Image) -> "Tensor":
    """A mask, mode L, as [1, H, W] fp32 in [0, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(mask, dtype=np.float32)[None] / 255)


def square(image: Image.Image, side: int) -> Image.Image:
    """The middle of a picture, `side` pixels wide and high."""
    return cut(image, Size(side, side))[0]


def _mirrored(image: Image.Image, view: View) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else image


def to_image(pixels: "Tensor") -> Image.Image:
    """[3, H, W] in [-1, 1] as a picture."""
    return Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The same in its proportions, its longer side `side` pixels; enlarged without smoothing, as a small picture is to be seen as it is."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def to_tensor(image: Image.Image) -> "Tensor":
    """[3, H, W] fp32 in [-1, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1.0)
