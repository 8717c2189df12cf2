"""What samples have for a base to read, and how a batch's columns are made of what the cache keeps of it. Torch-free."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.data.cache import Row

PICTURE = "picture"
LOSS_MASK = "loss_mask"  # what of a picture counts
INPAINT_MASK = "inpaint_mask"  # what of it is to be repainted: drawn where it is no file of its own
MASKED = "masked"  # the picture without that
PIXELS = "pixels"
ALPHA = "alpha"  # in the place of a hash: the mask is the picture's own opacity


@dataclass(frozen=True)
class Beside:
    """Files that lie beside pictures and are read with them."""

    noun: str
    ending: str  # a regular expression for the ends of their stems, which begin as their pictures'
    setting: str  # that reads them


BESIDE = {
    LOSS_MASK: Beside("mask", r"(-masklabel|\.mask)$", "data.mask=file"),  # cat-masklabel.png or cat.mask.png beside cat.jpg
    INPAINT_MASK: Beside("inpainting mask", r"\.inpaint$", "data.inpaint_mask=both"),  # cat.inpaint.png
}


class Input(NamedTuple):
    """A file that belongs to a sample, and the sha256 of its bytes; nothing to read where it is a part of another."""

    content: str
    read: Callable[[], bytes] | None = None


@dataclass(frozen=True)
class Column:
    """A column of batches, made of a cached row; a row has it if it holds the tensor `kept`."""

    kept: str
    make: "Callable[[Row, Tensor | None], Tensor]"  # [...] of one sample, with noise of the shape of `kept` in training
    noise: str = ""  # the name that this noise is drawn by; none where nothing is
    missing: "Callable[[Row], Tensor] | None" = None  # what stands in for it where only others of a batch have it


def _posterior(name: str, noise: str) -> Column:
    """[C, H, W] of a sample: a draw from what the autoencoder tells of a picture, or its mean."""

    def make(row: "Row", normal: "Tensor | None") -> "Tensor":
        mean = row[f"{name}.mean"]
        return mean if normal is None else mean + row[f"{name}.deviation"] * normal.to(mean.device)

    return Column(f"{name}.mean", make, noise)


def _whole(row: "Row") -> "Tensor":
    plane = row["x_0.mean"][:1]
    return plane.new_ones(plane.shape)


COLUMNS = {
    "x_0": _posterior("x_0", "vae"),  # [B, C, H, W] in the denoiser's units
    "crop": Column("crop", lambda row, noise: row["crop"]),  # [B, 6]: original height and width, top and left, height and width
    LOSS_MASK: Column(LOSS_MASK, lambda row, noise: row[LOSS_MASK], missing=_whole),  # [B, 1, H, W] in [0, 1]
    # Of a run that reads them, in every row: one that lacked them would be taken for a picture of which all is kept.
    INPAINT_MASK: Column(INPAINT_MASK, lambda row, noise: row[INPAINT_MASK].float()),  # [B, 1, H, W], 1 where it is repainted
    MASKED: _posterior(MASKED, "vae masked"),  # [B, C, H, W], as x_0
    PIXELS: Column(PIXELS, lambda row, noise: row[PIXELS].float() / 127.5 - 1),  # [B, 3, height, width] in [-1, 1]
}
