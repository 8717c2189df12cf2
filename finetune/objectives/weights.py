"""How much a timestep counts, as functions of its signal-to-noise ratio.

Each is the weight of the squared error of epsilon, [B] for an SNR [B]. An error in epsilon is one in x_0 times SNR, and in v times
SNR + 1: `reparametrised` turns a weight into that of the same loss for what the network predicts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Weight = Callable[[Tensor], Tensor]


def uniform(snr: Tensor) -> Tensor:
    """Whatever the network predicts: see `reparametrised`."""
    return torch.ones_like(snr)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) for x_0 (Hang et al. 2023, arXiv:2303.09556)."""

    gamma: float = 5.0

    def __call__(self, snr: Tensor) -> Tensor:
        return self.gamma / snr.clamp(min=self.gamma)  # so written that SNR = 0 gives 1 and not NaN


@dataclass(frozen=True)
class SoftMinSNR:
    """SNR gamma / (SNR + gamma) for x_0: min-SNR without its corner (Crowson et al. 2024, arXiv:2401.11605, section 3.3)."""

    gamma: float = 5.0

    def __call__(self, snr: Tensor) -> Tensor:
        return self.gamma / (snr + self.gamma)


@dataclass(frozen=True)
class Debiased:
    """1 / sqrt(SNR) (Yu et al. 2023, arXiv:2310.08442); at most that of SNR = 1e-6, which is infinite at zero terminal SNR."""

    def __call__(self, snr: Tensor) -> Tensor:
        return snr.clamp(min=1e-6).rsqrt()


@dataclass(frozen=True)
class P2:
    """1 / (k + SNR)^gamma with k = 1 (Choi et al. 2022, arXiv:2204.00227, equation 8)."""

    gamma: float = 1.0

    def __call__(self, snr: Tensor) -> Tensor:
        return (1 + snr) ** -self.gamma


WEIGHTS: dict[str, Callable[..., Weight]] = {
    "uniform": lambda: uniform,
    "min-snr": MinSNR,
    "soft-min-snr": SoftMinSNR,
    "debiased": Debiased,
    "p2": P2,
}


def reparametrised(weight: Weight, snr: Tensor, prediction_type: str) -> Tensor:
    """[B]: the weight for a network that predicts epsilon, v or x_0. Uniform stays uniform: it is the plain error of each."""
    of_epsilon = weight(snr)
    if weight is uniform or prediction_type == "epsilon":
        return of_epsilon
    return of_epsilon * (snr / (snr + 1) if prediction_type == "v_prediction" else snr)
