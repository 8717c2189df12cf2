"""How a network that trains runs: without dropout of its own, and with activations that are computed again where memory is short."""

from collections.abc import Iterable
from typing import Protocol, cast

from torch import nn


class DiffusersModel(Protocol):
    """A network of diffusers."""

    def enable_gradient_checkpointing(self) -> None:
        """Activations are computed again in the backward pass."""


class TransformersModel(Protocol):
    """A network of transformers."""

    def get_input_embeddings(self) -> nn.Module:
        """The table of words, with its `weight`."""

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another in its place."""

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict[str, bool]) -> None:
        """Activations are computed again in the backward pass."""

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, bool]) -> None:
        """The same, as transformers before 5.23 call it."""


def recompute(nets: Iterable[nn.Module]) -> None:
    """Activations are computed again in the backward pass; frozen inputs keep their gradients that way, so never re-entrant."""
    how = {"use_reentrant": False}
    for net in nets:
        encoder = cast(TransformersModel, net)
        if hasattr(net, "enable_gradient_checkpointing"):
            cast(DiffusersModel, net).enable_gradient_checkpointing()
        elif hasattr(net, "activation_checkpointing_enable"):
            encoder.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
        else:
            encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def undrop(net: nn.Module) -> None:
    """Turns off the dropout that a network came with, as in T5: what it says while it trains is what it will say when it is used."""
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(vars(module).get("dropout"), float):  # the attention of transformers
            module.dropout = 0.0  # type: ignore[assignment]
