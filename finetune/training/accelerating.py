"""What a run asks of accelerate: the members of its objects that are used here. Its package has no types of its own that are read."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Scaler(Protocol):
    """Keeps fp16 gradients within their range."""

    def state_dict(self) -> dict[str, Any]:
        """Its scale, and how long that has held."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""


class Steps(Protocol):
    """An optimizer, perhaps wrapped: then its `optimizer` is that of torch."""

    def step(self) -> None:
        """One update; with a scaler, none where a gradient was not finite."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""


class Processes(Protocol):
    """The processes of a run, before there is an `Accelerator`."""

    device: torch.device
    num_processes: int
    is_main_process: bool

    def wait_for_everyone(self) -> None:
        """Returns when all processes are here."""


class Accelerator(Protocol):
    """One process's devices, its place among all, and what they do together."""

    device: torch.device
    process_index: int
    num_processes: int
    is_main_process: bool
    scaler: Scaler | None  # with fp16 alone

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Steps]:
        """Both on the device, wrapped so that the processes keep the same weights."""

    def unwrap_model(self, module: nn.Module) -> nn.Module:
        """A module without what wraps it."""

    def autocast(self) -> AbstractContextManager[None]:
        """In which networks compute in the mixed precision."""

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """In which backward passes add gradients up in each process alone."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient up; it is the mean over processes."""

    def clip_grad_norm_(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """Scales gradients down to a norm of `max_norm`; the norm that they had."""

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The sum, or mean, over processes, in each of them."""

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after the other."""

    def free_memory(self) -> None:
        """Lets go of what was prepared."""

    def wait_for_everyone(self) -> None:
        """Returns when all processes are here."""

    def main_process_first(self) -> AbstractContextManager[None]:
        """In which the other processes wait until the first is through."""
