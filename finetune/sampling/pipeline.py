"""What is asked of diffusers' pipelines: the members that are used here."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class Answer(Protocol):
    """What a pipeline answers."""

    @property
    def images(self) -> Tensor:
        """Latents, where the output type is `latent`."""


class Pipeline(Protocol):
    """A denoiser with its autoencoder and its sampler. The denoiser is an attribute of the name that the family says."""

    def __call__(self, **arguments: object) -> Answer:
        """Draws; the arguments of `Family.prompt`, and how."""

    def set_progress_bar_config(self, disable: bool) -> None:
        """Whether it shows a bar of its own."""

    def register_modules(self, **modules: nn.Module) -> None:
        """Puts networks into it."""

    def load_lora_weights(self, source: str | Path | dict[str, Tensor], *, adapter_name: str, weight_name: str | None = None) -> None:
        """Adds an adapter, of a file in a folder or of tensors in its own layout."""

    def set_adapters(self, names: list[str], weights: list[float]) -> None:
        """Which adapters act, and how much."""


class Stepped(Protocol):
    """What a sampler answers."""

    @property
    def prev_sample(self) -> Tensor:
        """The picture at the next lower level of noise."""


class Sampler(Protocol):
    """One of diffusers' schedulers."""

    config: dict[str, Any]
    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, **more: float) -> None:
        """Chooses the levels of noise."""

    def step(self, answer: Tensor, t: Tensor, x_t: Tensor) -> Stepped:
        """From one level to the next."""
