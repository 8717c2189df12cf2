"""Averages of the weights whose length is chosen after the run (Karras et al. 2024, arXiv:2312.02696, section 3 and appendix C).

A power-function average gives the weights of step t the weight t^gamma, so that its length is a share of the run, however long it is.
Two of them are tracked and put down now and then; an average of any length is nearly a linear combination of what was put down.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune import files, tensor_files
from finetune.adapters.contract import TAGS
from finetune.errors import ConfigError, DataError
from finetune.results.checkpoint import State
from finetune.run_folder import RunFolder, average_name, step_of
from finetune.training.rebuilt import Rebuilt

TRACKED = (0.05, 0.10)  # relative lengths, as in the paper
SHORTEST, LONGEST = 0.01, 0.25  # what two such averages can stand for


@cache
def exponent(length: float) -> float:
    """gamma of a relative length sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), equation 126."""
    t = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
    return float(roots.real.max())


@dataclass
class PowerAverages:
    """fp32 averages of parameters by name, one for each length in TRACKED."""

    tracked: list[dict[str, Tensor]]

    @classmethod
    def of(cls, parameters: Mapping[str, nn.Parameter]) -> "PowerAverages":
        return cls([{n: p.detach().float().clone() for n, p in parameters.items()} for _ in TRACKED])

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """After step `step` (0-based): beta = (1 - 1 / t)^(gamma + 1), equation 127."""
        t = step + 1
        for length, average in zip(TRACKED, self.tracked, strict=True):
            beta = (1 - 1 / t) ** (exponent(length) + 1)
            torch._foreach_lerp_(list(average.values()), [parameters[n].detach().float() for n in average], 1 - beta)

    def state(self) -> State:
        state: State = {}
        for i, average in enumerate(self.tracked):
            state |= {f"{i}/{name}": tensor for name, tensor in average.items()}
        return state

    def restore(self, saved: State) -> None:
        for i, average in enumerate(self.tracked):
            for name, tensor in average.items():
                tensor.copy_(saved[f"{i}/{name}"])

    def put_down(self, path: Path, data: Mapping[str, str]) -> None:
        """With what the files of the run say of the data, which may be elsewhere when an average is written."""
        files.write_bytes(path, tensor_files.sealed(self.state(), data))


Numbers = NDArray[np.float64]


def overlap(t_a: Numbers, g_a: Numbers, t_b: Numbers, g_b: Numbers) -> Numbers:
    """The inner product of the profiles of averages of steps 0 to t with exponents gamma, algorithm 3."""
    ratio = (t_a / t_b) ** np.where(t_a < t_b, g_b, -g_a)
    product: Numbers = (g_a + 1) * (g_b + 1) * ratio / ((g_a + g_b + 1) * np.maximum(t_a, t_b))
    return product


def combination(steps: Sequence[int], length: float) -> Numbers:
    """[snapshots, tracked]: what to take of each to come nearest to the average of a length at the last of `steps`."""
    t = np.repeat(np.asarray(steps, dtype=np.float64), len(TRACKED))
    g = np.tile([exponent(s) for s in TRACKED], len(steps))
    a = overlap(t[:, None], g[:, None], t[None], g[None])
    b = overlap(t[:, None], g[:, None], np.full((1, 1), t[-1]), np.full((1, 1), exponent(length)))
    shares: Numbers = np.linalg.lstsq(a, b, rcond=1e-12)[0].astype(np.float64)
    return shares.reshape(len(steps), len(TRACKED))


def averaged(snapshots: Iterable[Path], length: float) -> tuple[dict[str, Tensor], int, dict[str, str]]:
    """The average of a length by parameter, the step at which it ends, and what the last snapshot says of the data.

    Raises:
        DataError: a snapshot is damaged.
    """
    by_step = {step: path for path in sorted(snapshots) if (step := step_of(path.stem)) is not None}
    steps = list(by_step)
    out: dict[str, Tensor] = {}
    for path, row in zip(by_step.values(), combination(steps, length), strict=True):
        try:
            tensors, data = tensor_files.open_sealed(path)
        except (OSError, ValueError) as e:
            hint = f"the average of the others is another; to take it all the same, remove {path.name}"
            raise DataError(f"{path}: is damaged, or of an older version", hint) from e
        for key, tensor in tensors.items():
            which, _, name = key.partition("/")
            term = tensor.double() * float(row[int(which)])
            out[name] = out[name] + term if name in out else term
    return out, steps[-1], data


def write(folder: Path, length: float, name: str | None, base: str | None = None) -> dict[str, Path]:
    """Writes what a finished run would have written with an average of that length, beside its own files; by kind. `base` as
    for `Rebuilt.of`.

    Raises:
        ConfigError: the length is out of range, or the run kept no averages.
    """
    snapshots = RunFolder(folder).snapshots
    if not SHORTEST <= length <= LONGEST:
        raise ConfigError(f"--length {length:g}: must be between {SHORTEST:g} and {LONGEST:g} of the run")
    if not RunFolder(folder).record.exists():
        raise DataError(f"{folder}: is not the folder of a run", "give the --out of a run")
    if not snapshots:
        raise ConfigError(f"{folder}: kept no averages", "train with --set optim.ema_posthoc=true")
    run = Rebuilt.of(folder, base)
    tensors, step, noted = averaged(snapshots, length)
    run.put(tensors, "averages")
    data = {k: v for k, v in noted.items() if k != TAGS or run.job.run.publish_tags}
    return run.write(step, name or average_name(run.job.run.name, length), data)
