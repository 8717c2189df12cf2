"""Protection of a concept without pictures of it: the base's own answer to its caption is a target beside the pictures'."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.draws import Draws
from finetune.objectives.objective import Ask, Denoising, Inputs, Objective
from finetune.tensors import to_device
from finetune.text import spoken


@dataclass(frozen=True)
class Preserving(Objective):
    """Adds `weight` times the squared difference between what the network and its frozen base say to the preserved caption, at the same
    x_t: differential output preservation, as trainers of the field call it (ai-toolkit, 2025); the idea is that of learning without
    forgetting (Li and Hoiem 2016, arXiv:1606.09282).

    The preserved caption has `word` in the place of the `trigger`; one without the trigger has nothing to keep. A dropped caption is
    preserved and learns nothing of the picture: guidance draws every prompt with its answer, so that what it learns pushes all other
    prompts away from the picture (docs/methods.md has both measured).
    """

    inner: Denoising
    weight: float
    word: str
    trigger: str
    networks = Denoising.networks
    measured = Denoising.measured

    def __call__(self, ask: Ask, batch: Inputs, draws: Draws) -> Tensor:
        noised = self.inner.noised(batch.columns["x_0"], draws)
        error = self.inner.cost(ask.predict(noised.x_t, noised.t), noised)
        preserved = [None if caption is None else self.preserved(caption) for caption in batch.captions]
        with torch.no_grad():
            before = ask.predict(noised.x_t, noised.t, preserved, "base").to(error.dtype)
        after = ask.predict(noised.x_t, noised.t, preserved).to(error.dtype)
        learned = _column([caption is not None for caption in batch.captions], error)
        changed = [caption is None or caption != kept for caption, kept in zip(batch.captions, preserved, strict=True)]
        return learned * error + self.weight * _column(changed, error) * torch.square(after - before)

    def at(self, level: float) -> Objective:
        """The pictures' part alone."""
        return self.inner.at(level)

    def captions(self, caption: str) -> tuple[str, ...]:
        return (self.preserved(caption),)

    def preserved(self, caption: str) -> str:
        """A caption with what the trigger stands for in the trigger's place."""
        return spoken(self.trigger).sub(lambda _: self.word, caption)


def _column(holds: Sequence[bool], like: Tensor) -> Tensor:
    """1. where it holds, else 0.: [B, 1, ...] as `like` [B, ...]."""
    column = to_device(torch.tensor(holds, dtype=torch.float32), like.device).to(like)
    return column.view(-1, *[1] * (like.ndim - 1))
