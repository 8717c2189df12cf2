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

    def key(self, name: str, row: int) -> tuple[randomness.Key, ...]:
        """What everything that is drawn by a name for a row is a function of."""

    def strata(self, name: str) -> tuple[Tensor, int]:
        """Each row's place [B] in an order of the global batch that is drawn, and how many there are."""

    def uniform(self, name: str) -> Tensor:
        """[B] in [0, 1), fp64."""
        return torch.tensor([randomness.uniform(*self.key(name, row)) for row in range(self.count)], dtype=torch.float64)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """[B, *shape], fp32."""
        return torch.stack([torch.randn(*shape, generator=self.generator(name, row)) for row in range(self.count)])

    def number(self, name: str, row: int) -> int:
        """Evenly spread, of 63 bits."""
        return randomness.number(*self.key(name, row))

    def generator(self, name: str, row: int) -> torch.Generator:
        """For whatever else a row needs."""
        return randomness.generator(*self.key(name, row))


@dataclass(frozen=True)
class StepDraws(Draws):
    """In training: keyed by (seed, step, slot), where a slot is a position in the global batch of `total` pictures."""

    seed: int
    step: int
    slots: Sequence[int]
    total: int

    @property
    def count(self) -> int:
        """The slots that this process has a part of the batch for."""
        return len(self.slots)

    def key(self, name: str, row: int) -> tuple[randomness.Key, ...]:
        """(seed, name, step, slot): the same whichever process has the slot, in whichever micro-batch."""
        return self.seed, name, self.step, self.slots[row]

    def strata(self, name: str) -> tuple[Tensor, int]:
        """Places in one order of all `total` slots, which every process draws alike."""
        order = sorted(range(self.total), key=lambda slot: randomness.number(self.seed, name, self.step, slot))
        place = {slot: i for i, slot in enumerate(order)}
        return torch.tensor([place[slot] for slot in self.slots]), self.total


@dataclass(frozen=True)
class ProbeDraws(Draws):
    """In measuring: keyed by a picture's content and the number of a probe, so that two models see the same."""

    contents: Sequence[str]
    probe: int

    @property
    def count(self) -> int:
        """The pictures that are measured at once."""
        return len(self.contents)

    def key(self, name: str, row: int) -> tuple[randomness.Key, ...]:
        """Of the picture's content and the probe, not of its place in the batch, nor of the run's seed."""
        more = () if name == "noise" else (name,)  # the noise had the key to itself at first
        return ("held-out", *more, self.contents[row], self.probe)

    def strata(self, name: str) -> tuple[Tensor, int]:
        """The rows as they stand: nothing is drawn."""
        return torch.arange(self.count), self.count
