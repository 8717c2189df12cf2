"""Randomness as a function of a key we own, such as (seed, "noise", step, slot): never of rank, worker or leftover state."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Key = int | str


def number(*key: Key) -> int:
    """A 63-bit number, evenly spread: the same for the same key on every machine and every Python."""
    text = "\x1f".join(f"{type(k).__name__}:{k}" for k in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def uniform(*key: Key) -> float:
    """A number in [0, 1)."""
    return number(*key) / 2**63


def generator(*key: Key) -> "torch.Generator":
    """A CPU generator; noise is drawn on the CPU so that every device sees the same."""
    import torch

    return torch.Generator().manual_seed(number(*key))


@contextmanager
def global_rng(*key: Key) -> Iterator[None]:
    """Seeds torch's global generator from the key for what a library draws from it, and restores it."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(number(*key))
        yield
