"""The index plan: which sample stands in which slot of which step, as a pure function of the seed.

A *slot* is a position in the global batch, whatever the number of processes and of accumulation steps:
process r of W takes micro-batch m of M as slots [(m W + r) B, (m W + r + 1) B). An epoch shows every sample once;
its last batch may be partial, and is then padded with slots of weight 0, so that shapes never change.
"""

from dataclasses import dataclass
from functools import lru_cache

from finetune.data import keys


@dataclass(frozen=True)
class Slot:
    sample: int  # index into the dataset
    slot: int  # position in the global batch: the key of everything random about it
    weight: float  # 0 for padding


@dataclass(frozen=True)
class IndexPlan:
    """`names` are the samples' content keys, `weights` their loss weights, `batch` the global batch size."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.names) // self.batch)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def order(self, epoch: int) -> tuple[int, ...]:
        """Samples in the order of a hash of (seed, epoch, name): adding one moves no other."""
        return _order(self.names, self.seed, epoch)

    def slots(self, step: int) -> list[Slot]:
        """The global batch of one optimizer step, `batch` slots long."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        chosen = self.order(epoch)[batch * self.batch : (batch + 1) * self.batch]
        real = [Slot(s, i, self.weights[s]) for i, s in enumerate(chosen)]
        return real + [Slot(chosen[0], i, 0.0) for i in range(len(chosen), self.batch)]

    def total_weight(self, step: int) -> float:
        """The one normaliser of a step's loss: every process knows it without asking."""
        return sum(s.weight for s in self.slots(step))

    def micro_batches(self, step: int, size: int, rank: int = 0, world: int = 1) -> list[list[Slot]]:
        """This process's share, `batch / (size world)` lists of `size` slots."""
        slots = self.slots(step)
        starts = range(rank * size, self.batch, size * world)
        return [slots[s : s + size] for s in starts]


@lru_cache(maxsize=4)
def _order(names: tuple[str, ...], seed: int, epoch: int) -> tuple[int, ...]:
    # A name can stand twice when two files are equal: the index parts them.
    return tuple(sorted(range(len(names)), key=lambda i: (keys.number(seed, "order", epoch, names[i]), i)))
