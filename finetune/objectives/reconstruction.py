"""Pictures from their latents: what an autoencoder's decoder learns, with the encoder, and so all latents, as they are."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from finetune.draws import Draws
from finetune.objectives.objective import Ask, Inputs, Objective, widened

STRIDES = (1, 2, 4)  # pixels between the ends of a finite difference


@dataclass(frozen=True)
class Reconstruction(Objective):
    """L1, and L1 of finite differences at a few scales.

    The decoders of latent diffusion learn by L1 with a perceptual and an adversarial term (Rombach et al. 2022, arXiv:2112.10752, appendix
    G). Both terms are networks that would have to be downloaded, and that know photographs, which are not what a decoder is trained for
    here. What they are there for, edges that L1 alone leaves soft, is asked for by the gradient difference loss (Mathieu et al. 2016,
    arXiv:1511.05440, equation 6, with the exponent 1 and without the absolute values inside: a difference of the right size in the wrong
    direction is as wrong as none).
    """

    strides: tuple[int, ...] = STRIDES
    networks = frozenset({"vae"})
    measured = (0.0,)  # there is no noise
    columns = ("pixels",)

    def __call__(self, ask: Ask, batch: Inputs, draws: Draws) -> Tensor:
        """[B, 3, H, W]: the error of each pixel of "pixels", which are in [-1, 1]."""
        pixels = batch.columns["pixels"]
        residual = ask.decode(batch.columns["x_0"]) - pixels.float()
        mask = batch.columns.get("loss_mask")
        inside = None if mask is None else (widened(mask, residual) > 0).to(residual.dtype)
        error = residual.abs()
        for stride in self.strides:
            for axis in (-1, -2):
                error = error + difference(residual, stride, axis, inside)
        return error

    def at(self, level: float) -> "Reconstruction":
        """The plain L1: the error of the round trip."""
        return Reconstruction(())

    def captions(self, caption: str) -> Iterable[str]:
        return ()


def difference(residual: Tensor, stride: int, axis: int, inside: Tensor | None) -> Tensor:
    """|r[i + stride] - r[i]| along an axis of [B, C, H, W], 0 where there is no second end; the difference of the pictures' own finite
    differences is that of their residual. One whose second end is not `inside` [B, 1, H, W] counts for nothing, as what is outside of a
    mask must neither be learned nor pull on what is learned beside it.
    """
    length = residual.shape[axis] - stride
    ends = (residual.narrow(axis, stride, length) - residual.narrow(axis, 0, length)).abs()
    if inside is not None:
        ends = ends * inside.narrow(axis, stride, length)
    return F.pad(ends, (0, stride) if axis == -1 else (0, 0, 0, stride))
