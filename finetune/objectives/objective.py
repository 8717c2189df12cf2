"""What every objective answers, and what it is given: a batch by the names of its columns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from finetune.draws import Draws
from finetune.objectives.noise import Noise
from finetune.objectives.timesteps import Levels
from finetune.tensors import to_device

Weights = Literal["live", "base"]  # as they are while they train, or as they were before
BINS = 5
LEVELS = tuple((i + 0.5) / BINS for i in range(BINS))  # the middles of equal parts of what training draws from


class Ask(Protocol):
    """What an objective may ask of the networks that train. All goes through the one module that is synchronised."""

    def predict(self, x_t: Tensor, t: Tensor, captions: Sequence[str | None] | None = None, weights: Weights = "live") -> Tensor:
        """The denoiser's answer, shaped as `x_t` [B, C, H, W], for the batch's inputs and its captions, or for other ones.

        `base` is as all networks were before they were trained, text encoders too; to be asked without gradients.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """The autoencoder's pictures [B, 3, H, W] of latents [B, C, H/f, W/f] in the denoiser's units; fp32, about [-1, 1]."""


class Noised(NamedTuple):
    """Pictures at their noise levels: `x_t` and `target` [B, C, H, W]; `t` [B], as the network is told it."""

    x_t: Tensor
    t: Tensor
    target: Tensor


class Inputs(Protocol):
    """The part of a batch that objectives look at."""

    @property
    def columns(self) -> Mapping[str, Tensor]:
        """By name, [B, ...] on the device: "x_0" [B, C, H, W], "crop" [B, 6], "loss_mask" [B, 1, H, W]; absent ones no sample has."""

    @property
    def captions(self) -> Sequence[str | None]:
        """One a row; None is what inference puts in the place of a caption."""


class Objective(Protocol):
    """Owns time, noise, corruption and weight; named after its paper."""

    networks: frozenset[str]  # that it asks: "denoiser", "text" (the text encoders), "vae"; no other is loaded for training
    measured: tuple[float, ...]  # the levels at which held-out pictures are measured, each by `at`
    columns: tuple[str, ...] = ()  # that it reads of a batch besides "x_0"

    def __call__(self, ask: Ask, batch: Inputs, draws: Draws) -> Tensor:
        """The error of each element, [B, ...]; the loop takes the mean of each row over its mask."""

    def at(self, level: float) -> "Objective":
        """The same, plain and unweighted, at one level in [0, 1) of what training draws from: for held-out losses."""

    def captions(self, caption: str) -> Iterable[str]:
        """What else it will say where a sample has this caption, so that it is encoded ahead."""


class Denoising(Objective, Protocol):
    """An objective that mixes a picture with noise and asks once; what builds on one may ask more at the same place."""

    networks: frozenset[str] = frozenset({"denoiser", "text"})
    measured: tuple[float, ...] = LEVELS
    levels: Levels
    noise: Noise

    def timesteps(self, u: Tensor, shape: torch.Size) -> Tensor:
        """[B] uniform in [0, 1), fp64 -> `t` [B] as the network is told it; `shape` is that of the pictures [B, C, H, W]."""

    def mixed(self, x_0: Tensor, noise: Tensor, t: Tensor, added: Tensor | None = None) -> Noised:
        """`x_0` [B, C, H, W] at `t` [B]; `added` is the noise that is mixed in where it is not the `noise` to predict."""

    def cost(self, answer: Tensor, noised: Noised) -> Tensor:
        """The weighted error of each element of an answer, [B, C, H, W] in the target's dtype (fp32 in training)."""

    def __call__(self, ask: Ask, batch: Inputs, draws: Draws) -> Tensor:
        """The weighted error of the one answer, [B, C, H, W]."""
        noised = self.noised(batch.columns["x_0"], draws)
        return self.cost(ask.predict(noised.x_t, noised.t), noised)

    def captions(self, caption: str) -> Iterable[str]:
        """None: it says what the batch says."""
        return ()

    def noised(self, x_0: Tensor, draws: Draws) -> Noised:
        """`x_0` [B, C, H, W] at the levels and with the noise that are drawn."""
        t = to_device(self.timesteps(self.levels(draws), x_0.shape), x_0.device)
        noise, added = self.noise(draws, x_0)
        return self.mixed(x_0, noise, t, added)


def widened(mask: Tensor, like: Tensor) -> Tensor:
    """A mask [B, 1, h, w] of latents on the grid of `like` [B, C, H, W], that of latents or of their pixels."""
    factor = like.shape[-1] // mask.shape[-1]
    return mask if factor == 1 else mask.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def per_picture(error: Tensor, masks: Tensor | None) -> Tensor:
    """[B]: the mean of each picture's error [B, C, H, W]; with masks [B, 1, h, w], over the area that they leave."""
    if masks is None:
        return error.flatten(1).mean(1)
    masks = widened(masks, error)
    return (error * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) * error.shape[1])
