"""What comes back of pictures that an autoencoder encodes and decodes, held against what they were."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune.data.encoded import Encoded
from finetune.data.inputs import LOSS_MASK, PIXELS
from finetune.evaluation.heldout import of_one_size
from finetune.objectives.objective import per_picture

MOST = 100.0  # dB: of a picture that comes back as it was


def psnr(before: Tensor, after: Tensor, masks: Tensor | None = None) -> Tensor:
    """[B] peak signal-to-noise ratio in dB of pixels [B, 3, H, W] in [-1, 1]; with masks [B, 1, h, w], over the area that they leave."""
    error = per_picture(((after - before) / 2).square(), masks)
    return -10 * torch.log10(error.clamp(min=10 ** (-MOST / 10)))


def decibels(
    decode: Callable[[Tensor], Tensor], encoded: Encoded, indices: Sequence[int], poll: Callable[[], None], batch: int = 8
) -> Tensor:
    """[N] PSNR of pictures whose rows hold their pixels; `decode` gives pixels [B, 3, H, W] on the CPU; `poll` is called before each
    batch."""
    rows: dict[int, Tensor] = {}
    for chosen in of_one_size(encoded, indices, batch):
        poll()
        columns = encoded.plain([encoded.samples[i] for i in chosen]).to(torch.device("cpu")).columns
        rows |= dict(zip(chosen, psnr(columns[PIXELS], decode(columns["x_0"]), columns.get(LOSS_MASK)), strict=True))
    return torch.stack([rows[i] for i in indices])
