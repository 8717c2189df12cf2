"""Protection of a concept without pictures of it: the base's own answer to its caption is a target beside the pictures'."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preserving:
    """Adds `weight` times the squared difference between what the network and its frozen base say to the preserved caption, at the same
    x_t: differential output preservation, as trainers of the field call it (ai-toolkit, 2025); the idea is that of learning without
    forgetting (Li and Hoiem 2016, arXiv:1606.09282).

    A dropped caption is preserved and learns nothing of the picture: guidance draws every prompt with its answer, so that what it learns
    pushes all other prompts away from the picture (docs/methods.md has both measured).

    `predict` takes two more words than for other objectives, `preserved` (the other caption) and `frozen` (without the adapter), and has
    two masks [B], 1. or 0.: `learned`, captions that learn the picture, and `kept`, those that the base's answer is kept to. A caption
    without the trigger has nothing to keep.
    """

    inner: Any  # Objective
    weight: float

    @property
    def schedule(self) -> Any:
        return self.inner.schedule

    def timesteps(self, u: Tensor, shape: torch.Size) -> Tensor:
        t: Tensor = self.inner.timesteps(u, shape)
        return t

    def unweighted(self) -> Any:
        """What is measured on held-out pictures: the pictures' part alone."""
        return self.inner.unweighted()

    def __call__(self, predict: Any, x_0: Tensor, noise: Tensor, t: Tensor, added: Tensor | None = None) -> Tensor:
        seen: list[tuple[Tensor, Tensor]] = []

        def watched(x_t: Tensor, t: Tensor) -> Tensor:
            seen.append((x_t, t))
            answer: Tensor = predict(x_t, t)
            return answer

        error: Tensor = self.inner(watched, x_0, noise, t, added)
        with torch.no_grad():
            before: Tensor = predict(*seen[0], preserved=True, frozen=True).to(x_0.dtype)
        after: Tensor = predict(*seen[0], preserved=True).to(x_0.dtype)
        shape = (-1, *[1] * (error.ndim - 1))
        learned: Tensor = predict.learned.to(error).view(shape)
        kept: Tensor = predict.kept.to(error).view(shape)
        return learned * error + self.weight * kept * torch.square(after - before)
