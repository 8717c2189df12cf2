"""The index plan: which sample stands in which slot of which step, as a pure function of the seed. Torch-free.

A *slot* is a position in the global batch, whatever the number of processes and of accumulation steps:
process r of W takes micro-batch m of M as slots [(m W + r) B, (m W + r + 1) B). The slots go round the groups (DreamBooth's
instance and class pictures), so that every batch holds as many of each.

A group is a row of epochs. An epoch draws every sample of the group as often as its `times` says (once, but for repeats and weights),
in batches that are of one size each. What a size's last batch lacks is filled with further draws of the same size.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from finetune.data import keys
from finetune.data.sample import Sample, Size

DRAW = np.dtype([("key", np.int64), ("sample", np.int64), ("copy", np.int64)])  # arrays, as there may be millions


@dataclass(frozen=True)
class Slot:
    sample: int  # index into the dataset
    slot: int  # position in the global batch: the key of everything random about it
    weight: float


@dataclass
class Group:
    """Samples of which every step takes `batch`, all of one size. `first` is the index of the first in the dataset."""

    samples: Sequence[Sample]
    first: int
    batch: int
    seed: int
    starts: list[int] = field(default_factory=lambda: [0])  # the step at which each epoch begins, as far as anyone asked
    made: dict[int, NDArray[np.int32]] = field(default_factory=dict)  # the last epochs that were asked for

    def __post_init__(self) -> None:
        self.cells: dict[Size, dict[object, list[int]]] = {}  # size -> times -> samples
        same: dict[str, list[int]] = {}
        counts = Counter(s.content for s in self.samples)
        for i, s in enumerate(self.samples):
            self.cells.setdefault(s.size, {}).setdefault(s.times, []).append(i)
            if counts[s.content] > 1:
                same.setdefault(s.content, []).append(i)
        # Rows of one picture, such as one for each caption, are told apart by what they say, not by where they stand.
        ranked = (sorted(rows, key=lambda i: (self.samples[i].captions, self.samples[i].size)) for rows in same.values())
        self.twins = {i: turn for rows in ranked for turn, i in enumerate(rows)}

    def draws(self, size: Size, epoch: int) -> int:
        """How many draws an epoch has of a size, without what fills the last batch; fractions are carried from epoch to epoch."""
        return sum(_draws(self.samples[cell[0]], len(cell), epoch) for cell in self.cells[size].values())

    def count(self, epoch: int) -> int:
        """Batches of an epoch."""
        return sum(-(-self.draws(size, epoch) // self.batch) for size in self.cells)

    def fills(self, epoch: int) -> int:
        """Draws of an epoch that only fill a batch."""
        return sum(-self.draws(size, epoch) % self.batch for size in self.cells)

    def order(self, size: Size, epoch: int) -> NDArray[np.int64]:
        """An epoch's draws of a size, in the order of a hash of (seed, epoch, picture, which of its draws): adding one moves no other."""
        drawn = []
        for cell in self.cells[size].values():
            ranked = np.sort(self._ranks(epoch, cell, 0))
            whole, rest = divmod(_draws(self.samples[cell[0]], len(cell), epoch), len(cell))
            for copy in range(whole + 1):
                chosen = ranked if copy < whole else ranked[:rest]
                drawn.append(chosen if copy == 0 else self._ranks(epoch, chosen["sample"].tolist(), copy))
        out: NDArray[np.int64] = np.sort(np.concatenate(drawn))["sample"]
        return out

    def _ranks(self, epoch: int, chosen: Sequence[int], copy: int) -> NDArray[np.void]:
        return np.fromiter(((self._key(epoch, i, copy), i, copy) for i in chosen), DRAW, len(chosen))

    def _key(self, epoch: int, i: int, copy: int) -> int:
        more, twin = (copy,) if copy else (), self.twins.get(i, 0)
        return keys.number(self.seed, "order", epoch, self.samples[i].content, *more, *(("twin", twin) if twin else ()))

    def batches(self, epoch: int) -> NDArray[np.int32]:
        """The batches of an epoch, as indices into the dataset, [steps, batch]."""
        if epoch not in self.made:
            rows, ranks = [], list[tuple[int, Size]]()
            for size in self.cells:
                order = self.order(size, epoch)
                padded = np.resize(order, -(-len(order) // self.batch) * self.batch)  # from the first again
                rows.append((self.first + padded).astype(np.int32).reshape(-1, self.batch))
                for start in range(0, len(padded), self.batch):
                    ranks.append((keys.number(self.seed, "batch", epoch, *size, start) if len(self.cells) > 1 else start, size))
            made = np.concatenate(rows)[sorted(range(len(ranks)), key=ranks.__getitem__)]
            self.made = {e: b for e, b in self.made.items() if abs(e - epoch) < 2} | {epoch: made}
        return self.made[epoch]

    def at(self, step: int) -> list[int]:
        """A step's samples."""
        while self.starts[-1] <= step:
            self.starts.append(self.starts[-1] + self.count(len(self.starts) - 1))
        epoch = bisect_right(self.starts, step) - 1
        chosen: list[int] = self.batches(epoch)[step - self.starts[epoch]].tolist()
        return chosen


def _draws(sample: Sample, count: int, epoch: int) -> int:
    total = sample.times * count
    return int((epoch + 1) * total) - int(epoch * total)


class IndexPlan:
    """`groups` are the sizes of the groups, which stand one behind the other in `samples`; `batch` is a multiple of their number."""

    def __init__(self, samples: Sequence[Sample], batch: int, seed: int, groups: Sequence[int] = ()) -> None:
        self.samples, self.batch = samples, batch
        counts = [g for g in groups if g] or [len(samples)]
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        self.groups = [Group(samples[f : f + n], f, batch // len(counts), seed) for f, n in zip(firsts, counts, strict=True)]

    @property
    def epoch_steps(self) -> int:
        """Steps until every sample of the largest group was shown."""
        return max(group.count(0) for group in self.groups)

    def slots(self, step: int) -> list[Slot]:
        """The global batch of one optimizer step, `batch` slots long."""
        rows = zip(*(group.at(step) for group in self.groups), strict=True)
        drawn = [sample for row in rows for sample in row]
        return [Slot(sample, slot, self.samples[sample].weight) for slot, sample in enumerate(drawn)]

    def total_weight(self, step: int) -> float:
        """The one normaliser of a step's loss: every process knows it without asking."""
        return sum(s.weight for s in self.slots(step))

    def micro_batches(self, step: int, size: int, rank: int = 0, world: int = 1) -> list[list[Slot]]:
        """This process's share, `batch / (size world)` lists of `size` slots."""
        slots = self.slots(step)
        starts = range(rank * size, self.batch, size * world)
        return [slots[s : s + size] for s in starts]


def describe(samples: Sequence[Sample], batch: int, say: Callable[[str], None]) -> None:
    """What pictures are cut to, and what an epoch of them is, in batches of so many."""
    group = Group(samples, 0, batch, 0)
    counts = Counter(s.size for s in samples)
    say("  cut to " + ", ".join(f"{size}: {count}" for size, count in sorted(counts.items())))
    if enlarged := sum(s.size.height > s.original.height or s.size.width > s.original.width for s in samples):
        say(f"  {enlarged} enlarged, as they are smaller than that")
    if fills := group.fills(0):
        say(f"  an epoch is {group.count(0)} steps; {fills} further draws fill the last batch{' of each size' * (len(counts) > 1)}")
