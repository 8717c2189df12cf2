"""What is drawn at random for the rows of a batch: functions of keys, the same on every device and however a batch is split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from finetune import randomness


class Draws(Protocol):
    """Randomness for the rows of a batch, by the name of what is drawn. All of it is on the CPU."""

    @property
    def count(self) -> int:
        """Rows of the batch, B."""

    def uniform(self, name: str) -> Tensor:
        """[B] in [0, 1), fp64."""

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """[B, *shape], fp32."""

    def generator(self, name: str, row: int) -> torch.Generator:
        """For whatever else a row needs."""

    def strata(self, name: str) -> tuple[Tensor, int]:
        """Each row's place [B] in an order of the global batch that is drawn, and how many there are."""


@dataclass(frozen=True)
class StepDraws:
    """In training: keyed by (seed, step, slot), where a slot is a position in the global batch of `total` pictures."""

    seed: int
    step: int
    slots: Sequence[int]
    total: int

    @property
    def count(self) -> int:
        return len(self.slots)

    def number(self, name: str, row: int) -> int:
        """Evenly spread, of 63 bits."""
        return randomness.number(self.seed, name, self.step, self.slots[row])

    def generator(self, name: str, row: int) -> torch.Generator:
        return randomness.generator(self.seed, name, self.step, self.slots[row])

    def uniform(self, name: str) -> Tensor:
        return torch.tensor([randomness.uniform(self.seed, name, self.step, slot) for slot in self.slots], dtype=torch.float64)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=self.generator(name, row)) for row in range(self.count)])

    def strata(self, name: str) -> tuple[Tensor, int]:
        order = sorted(range(self.total), key=lambda slot: randomness.number(self.seed, name, self.step, slot))
        place = {slot: i for i, slot in enumerate(order)}
        return torch.tensor([place[slot] for slot in self.slots]), self.total


@dataclass(frozen=True)
class ProbeDraws:
    """In measuring: keyed by a picture's content and the number of a probe, so that two models see the same."""

    contents: Sequence[str]
    probe: int

    @property
    def count(self) -> int:
        return len(self.contents)

    def _key(self, name: str, row: int) -> tuple[randomness.Key, ...]:
        more = () if name == "noise" else (name,)  # the noise had the key to itself at first
        return ("held-out", *more, self.contents[row], self.probe)

    def generator(self, name: str, row: int) -> torch.Generator:
        return randomness.generator(*self._key(name, row))

    def uniform(self, name: str) -> Tensor:
        return torch.tensor([randomness.uniform(*self._key(name, row)) for row in range(self.count)], dtype=torch.float64)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=self.generator(name, row)) for row in range(self.count)])

    def strata(self, name: str) -> tuple[Tensor, int]:
        return torch.arange(self.count), self.count
