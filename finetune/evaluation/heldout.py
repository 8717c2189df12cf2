"""The loss on pictures that training never sees, at fixed timesteps and noises, so that two models differ by learning alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune import randomness
from finetune.data.encoded import Encoded, masks_of
from finetune.data.sample import Size
from finetune.families.family import Family
from finetune.objectives.objective import Objective, per_picture

BINS = 5


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    count: int

    def record(self) -> dict[str, Any]:
        """As JSON can say it: where one pair has no interval, its ends are None."""
        low, high = (x if math.isfinite(x) else None for x in (self.low, self.high))
        return {"mean": self.mean, "low": low, "high": high, "pictures": self.count}


def timesteps(objective: Objective, shape: torch.Size) -> Tensor:
    """[BINS]: the middle of each of equal parts of what training draws from, for pictures of a shape [B, C, H, W]."""
    return objective.timesteps((torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS, shape)


@torch.no_grad()
def losses(
    family: Family,
    predict: Callable[[Tensor, Tensor, Sequence[str | None], Tensor], Tensor],
    objective: Objective,
    encoded: Encoded,
    indices: Sequence[int],
    poll: Callable[[], None],
    batch: int = 8,
) -> Tensor:
    """[N, BINS] unweighted losses, fp32 on the CPU; `predict` takes x_t, t, captions and crops; `poll` is called before each batch."""
    rows: dict[int, Tensor] = {}
    plain = objective.unweighted()
    for chosen in _batches(encoded, indices, batch):
        poll()
        samples = [encoded.samples[i] for i in chosen]
        found = [encoded[s] for s in samples]
        x_0, masks = torch.stack([row.mean for row in found]).to(family.device), masks_of(found)
        masks = None if masks is None else masks.to(family.device)
        captions, crops = [s.caption for s in samples], torch.stack([row.crop for row in found])
        columns = []
        for b, t in enumerate(timesteps(objective, x_0.shape)):
            noise = torch.stack([torch.randn(x_0.shape[1:], generator=randomness.generator("held-out", s.content, b)) for s in samples])
            t_batch = t.expand(len(samples)).to(family.device)
            error = plain(lambda x_t, t, c=captions, k=crops: predict(x_t, t, c, k), x_0, noise.to(family.device), t_batch)  # type: ignore[misc]
            columns.append(per_picture(error, masks).cpu())
        rows |= dict(zip(chosen, torch.stack(columns, 1), strict=True))
    return torch.stack([rows[i] for i in indices])


def _batches(encoded: Encoded, indices: Sequence[int], batch: int) -> list[list[int]]:
    """Parts of at most `batch` pictures of one size."""
    sizes: dict[Size, list[int]] = {}
    for i in indices:
        sizes.setdefault(encoded.samples[i].size, []).append(i)
    return [same[start : start + batch] for same in sizes.values() for start in range(0, len(same), batch)]


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
