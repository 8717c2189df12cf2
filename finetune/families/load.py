"""From a resolved source to the family that speaks for it."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import diffusers
import torch
import transformers
from torch import Tensor, nn

from finetune import libraries
from finetune.families.components import Components
from finetune.families.source import Source
from finetune.families.spec import FamilySpec
from finetune.families.words import Words
from finetune.objectives.diffusion import Schedule
from finetune.objectives.flow import Flow

# One bar per component is noise in a run that has its own.
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()


class Family(Protocol):
    """What the loop, the caches and the samplers ask of a base."""

    source: Source
    spec: FamilySpec
    device: torch.device
    dtype: torch.dtype
    parts: Components
    window: int  # tokens of a caption, marks included
    words: Words

    def schedule(self) -> Schedule | Flow: ...
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...
    def decode(self, latents: Tensor, height: int, width: int) -> Tensor: ...
    def tokens(self, caption: str) -> int: ...
    def text(self, nets: Mapping[str, nn.Module], captions: Sequence[str]) -> list[dict[str, Tensor]]: ...
    def idle(self, part: str) -> tuple[str, ...]: ...
    def unconditional(self, empty: dict[str, Tensor]) -> dict[str, Tensor]: ...
    def cond(self, texts: Sequence[dict[str, Tensor]], crops: Tensor) -> dict[str, Tensor]: ...
    def predict(self, nets: Any, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor: ...
    def pipeline(self, denoiser: nn.Module | None = None, sampler: str | None = None) -> Any: ...
    def prompt(self, text: dict[str, Tensor], negative: dict[str, Tensor], guidance: float) -> dict[str, Any]: ...
    def inference(self) -> tuple[int, float]: ...
    def notes(self) -> list[str]: ...
    def labels(self) -> tuple[str, str]: ...
    @property
    def factor(self) -> int: ...
    @property
    def resolution(self) -> int: ...
    def example(self, side: int, device: str = "meta") -> dict[str, Any]: ...


def family(source: Source, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Family:
    """The family object of a base; nothing but its tokenizers is loaded yet."""
    module, _, name = source.spec.implementation.partition(":")
    cls = getattr(importlib.import_module(f"finetune.families.{module}"), name)
    libraries.imported()
    made: Family = cls(source, device, dtype)
    return made


@torch.no_grad()
def texts(family: Family, captions: Sequence[str]) -> list[dict[str, Tensor]]:
    """What the base's own text encoders, loaded for it, make of captions; on the CPU."""
    nets = {part: family.parts.load(part) for part in family.spec.text}
    return [{k: v.cpu() for k, v in row.items()} for row in family.text(nets, captions)]
