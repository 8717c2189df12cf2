"""All that trains in a step, as one module, and what objectives are answered by it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from torch import Tensor, nn

from finetune.data.batch import Batch
from finetune.data.encoded import Text
from finetune.families.autoencoder import unclamped
from finetune.families.family import Family
from finetune.objectives.objective import Weights


class Step(nn.Module):
    """One module, so that what wraps it synchronises all of it.

    `nets` are those that the objective asks: the denoiser, and the text encoders where they take part in every step, else `cached` has
    what they made of the captions; or the autoencoder.
    Within `base` the networks answer as they did before they were trained.
    """

    def __init__(
        self,
        family: Family,
        nets: Mapping[str, nn.Module],
        cached: Mapping[str, Text],
        base: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self.family, self.nets, self.cached, self.base = family, nn.ModuleDict(nets), cached, base

    def texts(self, captions: Sequence[str | None]) -> list[Text]:
        """A caption's encoding, each; None is what inference puts in the place of a caption."""
        rows = self.cached
        if not rows:
            wanted = sorted({c or "" for c in captions})
            rows = dict(zip(wanted, self.family.text(self.nets, wanted), strict=True))
        return [self.family.unconditional(rows[""]) if c is None else rows[c] for c in captions]

    def forward(self, what: Literal["predict", "decode"], *arguments: object) -> Tensor:
        """One of the methods below, by name: what wraps a module sees no other."""
        answer: Tensor = getattr(self, what)(*arguments)
        return answer

    def predict(
        self, x_t: Tensor, t: Tensor, captions: Sequence[str | None], columns: Mapping[str, Tensor], weights: Weights = "live"
    ) -> Tensor:
        """The denoiser's answer: see `Ask.predict`."""
        with self.base() if weights == "base" else nullcontext():
            return self.family.predict(self.nets, x_t, t, self.family.condition(self.texts(captions), columns))

    def decode(self, latents: Tensor) -> Tensor:
        """The autoencoder's pictures: see `Ask.decode`."""
        return unclamped(self.nets["vae"], latents)


class Asked:
    """What the networks of a step say of a batch. `module` is the step, perhaps wrapped."""

    def __init__(self, module: nn.Module, step: Step, batch: Batch) -> None:
        self.module, self.step, self.batch = module, step, batch

    def predict(self, x_t: Tensor, t: Tensor, captions: Sequence[str | None] | None = None, weights: Weights = "live") -> Tensor:
        """See `Ask.predict`; the base's answer is asked of the step itself, past what wraps it."""
        net = self.step if weights == "base" else self.module  # what wraps it has no gradient to wait for
        spoken = self.batch.captions if captions is None else captions
        answer: Tensor = net("predict", x_t, t, spoken, self.batch.columns, weights)
        return answer

    def decode(self, latents: Tensor) -> Tensor:
        """See `Ask.decode`."""
        answer: Tensor = self.module("decode", latents)
        return answer
