"""The index plan: which sample stands in which slot of which step, as a pure function of the seed.

A *slot* is a position in the global batch, whatever the number of processes and of accumulation steps:
process r of W takes micro-batch m of M as slots [(m W + r) B, (m W + r + 1) B). The slots go round the groups (DreamBooth's
instance and class pictures), so that every batch holds as many of each. A group is an endless row of epochs, each of which
shows every sample of the group once, in an order of its own; a batch may reach over the end of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from finetune.data import keys


@dataclass(frozen=True)
class Slot:
    sample: int  # index into the dataset
    slot: int  # position in the global batch: the key of everything random about it
    weight: float


@dataclass(frozen=True)
class IndexPlan:
    """`names` are the samples' content keys, `weights` their loss weights, `batch` the global batch size.

    `groups` are the sizes of the groups, which stand one behind the other; `batch` is a multiple of their number.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    batch: int
    seed: int
    groups: tuple[int, ...] = ()

    @property
    def ranges(self) -> list[range]:
        """The samples of each group."""
        ends = [sum(self.groups[: i + 1]) for i in range(len(self.groups))] or [len(self.names)]
        return [range(end - size, end) for end, size in zip(ends, self.groups or (len(self.names),), strict=True)]

    @property
    def epoch_steps(self) -> float:
        """Steps until every sample of the largest group was shown once."""
        return max(len(r) for r in self.ranges) / (self.batch // len(self.ranges))

    def order(self, group: int, epoch: int) -> tuple[int, ...]:
        """A group's samples in the order of a hash of (seed, epoch, name): adding one moves no other."""
        chosen = self.ranges[group]
        return _order(self.names[chosen.start : chosen.stop], chosen.start, self.seed, epoch)

    def slots(self, step: int) -> list[Slot]:
        """The global batch of one optimizer step, `batch` slots long."""
        count, ranges = self.batch // len(self.ranges), self.ranges
        out = []
        for slot in range(self.batch):
            row, group = divmod(slot, len(ranges))
            epoch, place = divmod(step * count + row, len(ranges[group]))
            sample = self.order(group, epoch)[place]
            out.append(Slot(sample, slot, self.weights[sample]))
        return out

    def total_weight(self, step: int) -> float:
        """The one normaliser of a step's loss: every process knows it without asking."""
        return sum(s.weight for s in self.slots(step))

    def micro_batches(self, step: int, size: int, rank: int = 0, world: int = 1) -> list[list[Slot]]:
        """This process's share, `batch / (size world)` lists of `size` slots."""
        slots = self.slots(step)
        starts = range(rank * size, self.batch, size * world)
        return [slots[s : s + size] for s in starts]


@lru_cache(maxsize=8)
def _order(names: Sequence[str], first: int, seed: int, epoch: int) -> tuple[int, ...]:
    # A name can stand twice when two files are equal: the index parts them.
    ranked = sorted(range(len(names)), key=lambda i: (keys.number(seed, "order", epoch, names[i]), i))
    return tuple(first + i for i in ranked)
