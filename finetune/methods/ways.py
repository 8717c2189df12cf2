"""Ways to train a network: an adapter in its layers, all weights of it or of a part, or rows for new tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from finetune.config.adapter_types import ROWS
from finetune.config.job import Job
from finetune.methods import adapter, full, textual_inversion
from finetune.methods.adapter import RankAlpha, Start

Noun = Literal["adapter", "model", "embedding", "decoder"]  # what files are called by what they hold


class How(Protocol):
    """A way to train a network."""

    noun: Noun  # of the file that it ends in
    masters: torch.dtype | None  # the number format that the network is loaded in; None: that which it runs in

    def attach(self, net: nn.Module) -> dict[str, nn.Parameter]:
        """What trains, by name, in a frozen network that takes it."""

    def count(self, net: nn.Module) -> dict[str, int]:
        """Numbers of what `attach` gives, by name, on a network without weights, which it may change."""
        return {name: parameter.numel() for name, parameter in self.attach(net).items()}

    def factors(self, parameter: str) -> tuple[float, float]:
        """What the rate and the decay of a parameter are times those of the trainee."""
        return 1.0, 1.0

    def settle(self, net: nn.Module, progress: float) -> None:
        """What follows an update at a share of the steps: nothing, as a rule."""
        return


@dataclass(frozen=True)
class Adapter(How):
    """Low-rank and other changes of layers, PEFT's (methods/adapter.py)."""

    job: Job
    wanted: Mapping[str, RankAlpha]  # by layer
    start: Start | None = None
    noun: Noun = "adapter"
    masters: torch.dtype | None = None

    def attach(self, net: nn.Module) -> dict[str, nn.Parameter]:
        """The matrices and vectors of all `wanted` layers, as they begin, or as `start` has them.

        Raises:
            ConfigError: a layer that the adapter's type cannot change, or that `start` has other shapes for.
        """
        return adapter.attach(net, self.job.method, self.wanted, self.job.run.seed, self.start)

    def factors(self, parameter: str) -> tuple[float, float]:
        """LoRA+ for up matrices; no decay of what stands for the base's own weights: DoRA's norms, and matrices that begin with a part
        of them."""
        row, method = ROWS[self.job.method.kind], self.job.method
        of_base = method.init in adapter.FROM_BASE or row.names("rows", parameter)
        return self.job.optim.lora_plus if row.names("up", parameter) else 1.0, 0.0 if of_base else 1.0

    def settle(self, net: nn.Module, progress: float) -> None:
        """The change is kept within its bound."""
        if self.job.method.max_norm is not None:
            adapter.limit(net, self.job.method.max_norm)


@dataclass(frozen=True)
class Whole(How):
    """All weights of a network, or those whose names begin with `only`; but for the `idle` beginnings that nothing reads."""

    masters: torch.dtype
    idle: tuple[str, ...] = ()
    only: str = ""
    noun: Noun = "model"

    def attach(self, net: nn.Module) -> dict[str, nn.Parameter]:
        """The network's own parameters as `masters`, without the idle ones and the table of words, which stays as it is."""
        return full.attach(net, self.idle, self.masters, self.only)


@dataclass(frozen=True)
class Rows(How):
    """New tokens' embeddings in a text encoder (methods/textual_inversion.py)."""

    job: Job
    part: str
    first: int  # id of the first new row
    like: Sequence[int]  # ids that a token begins as
    noun: Noun = "embedding"
    masters: torch.dtype | None = None

    def attach(self, net: nn.Module) -> dict[str, nn.Parameter]:
        """Raises nothing: the family's words know the tokens already."""
        m = self.job.method
        table = textual_inversion.words_of(net).weight[: self.first]
        rows = []
        for token in m.new_tokens:
            rows.append(textual_inversion.initial(table, self.like, m.vectors, self.job.run.seed, "new token", token, self.part))
        return {"new_tokens": textual_inversion.attach(net, torch.cat(rows), self.first).rows}

    def count(self, net: nn.Module) -> dict[str, int]:
        """Tokens times vectors times the width of the table, which needs no rows to be made."""
        width = textual_inversion.words_of(net).weight.shape[1]
        return {"new_tokens": len(self.job.method.new_tokens) * self.job.method.vectors * width}

    def settle(self, net: nn.Module, progress: float) -> None:
        """The norms are kept near those of words while the rows train."""
        if progress < self.job.method.token_until:
            textual_inversion.rows_of(net).retract()
