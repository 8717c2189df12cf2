"""What samples have for a base to read, and how a batch's columns are made of what the cache keeps of it. Torch-free."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.data.cache import Row

PICTURE, LOSS_MASK = "picture", "loss_mask"
ALPHA = "alpha"  # in the place of a hash: the mask is the picture's own opacity


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


def _posterior(row: "Row", noise: "Tensor | None") -> "Tensor":
    """[C, H, W]: a draw from what the autoencoder tells of a picture, or its mean."""
    mean = row["x_0.mean"]
    return mean if noise is None else mean + row["x_0.deviation"] * noise.to(mean.device)


def _whole(row: "Row") -> "Tensor":
    plane = row["x_0.mean"][:1]
    return plane.new_ones(plane.shape)


COLUMNS = {
    "x_0": Column("x_0.mean", _posterior, noise="vae"),  # [B, C, H, W] in the denoiser's units
    "crop": Column("crop", lambda row, noise: row["crop"]),  # [B, 6]: original height and width, top and left, height and width
    LOSS_MASK: Column(LOSS_MASK, lambda row, noise: row[LOSS_MASK], missing=_whole),  # [B, 1, H, W] in [0, 1]
}
