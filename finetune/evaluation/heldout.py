"""The loss on pictures that training never sees, at fixed levels and noises, so that two models differ by learning alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.data.batch import Batch
from finetune.data.encoded import Encoded
from finetune.data.inputs import LOSS_MASK
from finetune.data.sample import Size
from finetune.draws import ProbeDraws
from finetune.objectives.objective import Ask, Objective, per_picture


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Of the interval, which one pair does not have."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None, None
        return self.low, self.high


@torch.no_grad()
def losses(
    device: torch.device,
    ask: Callable[[Batch], Ask],
    objective: Objective,
    encoded: Encoded,
    indices: Sequence[int],
    poll: Callable[[], None],
    batch: int = 8,
) -> Tensor:
    """[N, levels] unweighted losses, fp32 on the CPU; `ask` is who answers for a batch; `poll` is called before each."""
    rows: dict[int, Tensor] = {}
    for chosen in of_one_size(encoded, indices, batch):
        poll()
        samples = [encoded.samples[i] for i in chosen]
        measured, contents = encoded.plain(samples).to(device), [sample.content for sample in samples]
        losses = []
        for probe, level in enumerate(objective.measured):
            error = objective.at(level)(ask(measured), measured, ProbeDraws(contents, probe))
            losses.append(per_picture(error, measured.columns.get(LOSS_MASK)).cpu())
        rows |= dict(zip(chosen, torch.stack(losses, 1), strict=True))
    return torch.stack([rows[i] for i in indices])


def of_one_size(encoded: Encoded, indices: Sequence[int], batch: int) -> list[list[int]]:
    """Parts of at most `batch` pictures of one size."""
    sizes: dict[Size, list[int]] = {}
    for i in indices:
        sizes.setdefault(encoded.samples[i].size, []).append(i)
    parts = []
    for same in sizes.values():
        parts += [same[start : start + batch] for start in range(0, len(same), batch)]
    return parts


def paired(before: Tensor, after: Tensor) -> Interval:
    """The mean of after - before over pairs, with Student's 95 % interval."""
    difference = (after - before).double().flatten()
    n = len(difference)
    mean = float(difference.mean())
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    half = student_t(n - 1) * float(difference.std()) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by the Cornish-Fisher series (Abramowitz and Stegun 26.7.5), exact below 5 degrees."""
    if freedom < 5:
        return (12.7062, 4.3027, 3.1824, 2.7764)[freedom - 1]
    z = 1.959964
    g = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(term / freedom ** (i + 1) for i, term in enumerate(g)))
