"""An adapted layer, as PEFT has it: the members that are used here."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Tensor, nn


class Weighted(Protocol):
    """The base's own linear or convolution layer."""

    @property
    def weight(self) -> Tensor:
        """[out, in, ...]."""


class AdaptedLayer(Protocol):
    """The base's layer with an adapter beside it, whose tensors are attributes by the names of the adapter's type."""

    scaling: Mapping[str, float]  # strength, by adapter
    moved_from_base: dict[str, Tensor]  # what the adapter began with of the base's weight; only where it did
    _disable_adapters: bool

    def get_base_layer(self) -> Weighted:
        """The layer that is adapted."""

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the adapter adds to the weight, shaped as it."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The adapter's and the base's."""
