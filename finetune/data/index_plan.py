"""The index plan: which sample stands in which slot of which step, as a pure function of the seed. Torch-free.

A *slot* is a position in the global batch, whatever the number of processes and of accumulation steps:
process r of W takes micro-batch m of M as slots [(m W + r) B, (m W + r + 1) B). The slots go round the groups (DreamBooth's
instance and class pictures), so that every batch holds as many of each.

A group is a row of epochs. An epoch draws every sample of the group as often as its `times` says (once, but for repeats and weights),
in batches that are of one size each. What the last batch lacks is filled with further draws where all are of one size. Of several,
each size's epochs are one row of draws, and what its last batch lacks is the beginning of its next epoch: the fewer a size's pictures,
the more they would be drawn otherwise.
"""

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from finetune import randomness
from finetune.data.buckets import Buckets, kept
from finetune.data.sample import Sample, Size, some

DRAW = np.dtype([("key", np.int64), ("sample", np.int64), ("copy", np.int64)])  # arrays, as there may be millions


@dataclass(frozen=True)
class Slot:
    sample: int  # index into the dataset
    slot: int  # position in the global batch: the key of everything random about it
    weight: float


@dataclass
class SampleGroup:
    """Samples of which every step takes `batch`, all of one size. `first` is the index of the first in the dataset."""

    samples: Sequence[Sample]
    first: int
    batch: int
    seed: int
    starts: list[int] = field(default_factory=lambda: [0])  # the step at which each epoch begins, as far as anyone asked
    kept_batches: dict[int, NDArray[np.int32]] = field(default_factory=dict)  # the last epochs that were asked for
    continued: dict[Size, tuple[int, NDArray[np.int64]]] = field(default_factory=dict)  # the last order of each of several sizes

    def __post_init__(self) -> None:
        self.cells: dict[Size, dict[object, list[int]]] = {}  # size -> times -> samples
        same: dict[str, list[int]] = {}
        counts = Counter(s.content for s in self.samples)
        for i, s in enumerate(self.samples):
            self.cells.setdefault(s.size, {}).setdefault(s.times, []).append(i)
            if counts[s.content] > 1:
                same.setdefault(s.content, []).append(i)
        # Rows of one picture, such as one for each caption, are told apart by what they say, not by where they stand.
        self.twins: dict[int, int] = {}
        for rows in same.values():
            ranked = sorted(rows, key=lambda i: (self.samples[i].captions, self.samples[i].size))
            self.twins |= {i: turn for turn, i in enumerate(ranked)}

    @property
    def alone(self) -> bool:
        """Whether all are of one size."""
        return len(self.cells) == 1

    @property
    def steps(self) -> float:
        """Batches of an epoch, on average."""
        if self.alone:
            return self.count(0)
        return round(float(sum(s.times for s in self.samples)) / self.batch, 2)

    def draws(self, size: Size, epoch: int) -> int:
        """How many draws an epoch has of a size, without what fills the last batch; fractions are carried from epoch to epoch."""
        return self._until(size, epoch) - self._until(size, epoch - 1)

    def _until(self, size: Size, epoch: int) -> int:
        """How many draws of a size an epoch and all before it have."""
        return sum(int((epoch + 1) * self.samples[cell[0]].times * len(cell)) for cell in self.cells[size].values())

    def count(self, epoch: int) -> int:
        """Batches of an epoch."""
        return sum(self._begun(size, epoch) for size in self.cells)

    def _begun(self, size: Size, epoch: int) -> int:
        """Batches of a size that begin with a draw of this epoch."""
        if self.alone:
            return -(-self.draws(size, epoch) // self.batch)
        return -(-self._until(size, epoch) // self.batch) + (-self._until(size, epoch - 1) // self.batch)

    def fills(self, epoch: int) -> int:
        """Draws of an epoch that only fill a batch; of several sizes, a last batch is filled by the next epoch."""
        return -self.draws(next(iter(self.cells)), epoch) % self.batch if self.alone else 0

    def sparse(self) -> dict[Size, list[Sample]]:
        """Of several sizes, those with fewer draws in an epoch than a batch: their batches hold a picture more than once."""
        out: dict[Size, list[Sample]] = {}
        if self.alone:
            return out
        for size, cells in self.cells.items():
            samples = [self.samples[i] for i in itertools.chain.from_iterable(cells.values())]
            if sum(s.times for s in samples) < self.batch:
                out[size] = samples
        return out

    def order(self, size: Size, epoch: int) -> NDArray[np.int64]:
        """An epoch's draws of a size; where it completes a batch of the epoch before, with others than are in that, if it has any."""
        if self.alone:
            return self._ranked(size, epoch)
        known, order = self.continued.get(size, (-1, np.empty(0, np.int64)))
        if known != epoch:
            first = self._independent(size, epoch, known)
            order = order if first - 1 == known else self._ranked(size, first - 1)
            for e in range(first, epoch + 1):
                order = self._continue(size, e, order)
            self.continued[size] = (epoch, order)
        return order

    def _independent(self, size: Size, epoch: int, known: int) -> int:
        """The last epoch up to this one whose order needs no other than the `known` one's, or only the end of a long one, which is kept."""
        while epoch - 1 != known and self._room(size, epoch) and self.draws(size, epoch - 1) < 2 * self.batch:
            epoch -= 1
        return epoch

    def _room(self, size: Size, epoch: int) -> int:
        """Draws of an epoch that complete a batch which an earlier one began."""
        return 0 if self.alone else -self._until(size, epoch - 1) % self.batch

    def _continue(self, size: Size, epoch: int, before: NDArray[np.int64]) -> NDArray[np.int64]:
        """An epoch's order after that of the epoch before; a long order keeps its end, so that the next need not know how it began."""
        ranked, room = self._ranked(size, epoch), self._room(size, epoch)
        if not room:
            return ranked
        movable = len(ranked) - self.batch if len(ranked) >= 2 * self.batch else len(ranked)
        chosen = np.flatnonzero(~np.isin(ranked[:movable], before[room - self.batch :]))[:room]
        return np.concatenate([ranked[chosen], np.delete(ranked, chosen)])

    def _ranked(self, size: Size, epoch: int) -> NDArray[np.int64]:
        """An epoch's draws of a size, in the order of a hash of (seed, epoch, picture, which of its draws): adding one moves no other."""
        drawn = []
        for cell in self.cells[size].values():
            ranked = np.sort(self._ranks(epoch, cell, 0))
            total = self.samples[cell[0]].times * len(cell)
            whole, rest = divmod(int((epoch + 1) * total) - int(epoch * total), len(cell))
            for copy in range(whole + 1):
                chosen = ranked if copy < whole else ranked[:rest]
                drawn.append(chosen if copy == 0 else self._ranks(epoch, chosen["sample"].tolist(), copy))
        out: NDArray[np.int64] = np.sort(np.concatenate(drawn))["sample"]
        return out

    def _ranks(self, epoch: int, chosen: Sequence[int], copy: int) -> NDArray[np.void]:
        return np.fromiter(((self._key(epoch, i, copy), i, copy) for i in chosen), DRAW, len(chosen))

    def _key(self, epoch: int, i: int, copy: int) -> int:
        key: list[randomness.Key] = [self.seed, "order", epoch, self.samples[i].content]
        if copy:
            key.append(copy)
        if twin := self.twins.get(i, 0):
            key += ["twin", twin]
        return randomness.number(*key)

    def batches(self, epoch: int) -> NDArray[np.int32]:
        """The batches of an epoch, as indices into the dataset, [steps, batch]."""
        if epoch not in self.kept_batches:
            rows, ranks = [], list[tuple[int, Size]]()
            for size in self.cells:
                filled = self._filled(size, epoch)
                rows.append((self.first + filled).astype(np.int32).reshape(-1, self.batch))
                for start in range(0, len(filled), self.batch):
                    rank = start if self.alone else randomness.number(self.seed, "batch", epoch, *size, start)
                    ranks.append((rank, size))
            batches = np.concatenate(rows)[sorted(range(len(ranks)), key=ranks.__getitem__)]
            self.kept_batches = {e: b for e, b in self.kept_batches.items() if abs(e - epoch) < 2} | {epoch: batches}
        return self.kept_batches[epoch]

    def _filled(self, size: Size, epoch: int) -> NDArray[np.int64]:
        """The draws of the batches of a size that begin in an epoch."""
        order, count = self.order(size, epoch), self._begun(size, epoch) * self.batch
        if self.alone:
            return np.resize(order, count)  # from the first again
        drawn, later = order[self._room(size, epoch) :], epoch
        while len(drawn) < count:
            later += 1
            drawn = np.concatenate([drawn, self.order(size, later)])
        return drawn[:count]

    def at(self, step: int) -> list[int]:
        """A step's samples."""
        while self.starts[-1] <= step:
            self.starts.append(self.starts[-1] + self.count(len(self.starts) - 1))
        epoch = bisect_right(self.starts, step) - 1
        chosen: list[int] = self.batches(epoch)[step - self.starts[epoch]].tolist()
        return chosen


class IndexPlan:
    """`groups` are the sizes of the groups, which stand one behind the other in `samples`; `batch` is a multiple of their number."""

    def __init__(self, samples: Sequence[Sample], batch: int, seed: int, groups: Sequence[int] = ()) -> None:
        self.samples, self.batch = samples, batch
        counts = [g for g in groups if g] or [len(samples)]
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        self.groups = [SampleGroup(samples[f : f + n], f, batch // len(counts), seed) for f, n in zip(firsts, counts, strict=True)]

    def slots(self, step: int) -> list[Slot]:
        """The global batch of one optimizer step, `batch` slots long."""
        rows = zip(*(group.at(step) for group in self.groups), strict=True)
        drawn = itertools.chain.from_iterable(rows)
        return [Slot(sample, slot, self.samples[sample].weight) for slot, sample in enumerate(drawn)]

    def total_weight(self, step: int) -> float:
        """The one normaliser of a step's loss: every process knows it without asking."""
        return sum(s.weight for s in self.slots(step))

    def micro_batches(self, step: int, size: int, rank: int = 0, world: int = 1) -> list[list[Slot]]:
        """This process's share, `batch / (size world)` lists of `size` slots."""
        slots = self.slots(step)
        starts = range(rank * size, self.batch, size * world)
        return [slots[s : s + size] for s in starts]


def describe(samples: Sequence[Sample], batch: int, buckets: Buckets, say: Callable[[str], None]) -> None:
    """What pictures are cut to, and what an epoch of them is, in batches of so many."""
    group = SampleGroup(samples, 0, batch, 0)
    counts = Counter(s.size for s in samples)
    say("  cut to " + ", ".join(f"{size}: {count}" for size, count in sorted(counts.items())))
    if enlarged := sum(s.size.height > s.original.height or s.size.width > s.original.width for s in samples):
        say(f"  {enlarged} enlarged, as they are smaller than that")
    for text, names in (joined(group, buckets) | repeated(group)).items():
        say(f"  {some(names)}: {text}")
    if fills := group.fills(0):
        say(f"  an epoch is {group.count(0)} steps; {fills} further draws fill the last batch")


def joined(group: SampleGroup, buckets: Buckets) -> dict[str, list[str]]:
    """What is cut like other pictures, as too few have its shape -> names."""
    out: dict[str, list[str]] = {}
    for s in buckets.moved(group.samples):
        text = f"cut to {s.size}, as too few have its shape for a batch of {group.batch}; {kept(s):.0%} of it is kept"
        out.setdefault(text, []).append(s.name)
    return out


def repeated(group: SampleGroup) -> dict[str, list[str]]:
    """What stands several times in its batches, and what helps -> names."""
    out: dict[str, list[str]] = {}
    for size, samples in group.sparse().items():
        have = "has" if len(samples) == 1 else "have"
        text = f"{len(samples)} {have} the shape {size}, and a batch is {group.batch}: drawn as often as others, but several times"
        out[f"{text} in a batch; crop to a shape that more have, or take a smaller --batch"] = [s.name for s in samples]
    return out
