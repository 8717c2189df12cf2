"""A base's networks, each loaded when a phase needs it and freed after."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from finetune.families.source import Source

Kind = tuple[Any, torch.dtype]  # a class of diffusers or transformers, and the precision that it runs in


class Components:
    def __init__(self, source: Source, kinds: Mapping[str, Kind], device: torch.device) -> None:
        self.source, self.kinds, self.device = source, kinds, device
        self.loaded: dict[str, nn.Module] = {}

    def load(self, name: str, dtype: torch.dtype | None = None) -> nn.Module:
        """A frozen component, in the precision that it runs in unless told: masters must not have been rounded.

        Raises:
            AccessError: its weights are missing or damaged.
        """
        if name not in self.loaded or dtype not in (None, next(self.loaded[name].parameters()).dtype):
            cls, own = self.kinds[name]
            self.source.weights(name)
            with self.source.reading(name):
                module = cls.from_pretrained(
                    self.source.folder / name, variant=self.source.variant, use_safetensors=True, dtype=dtype or own
                )
            self.loaded[name] = cast(nn.Module, module.to(self.device).requires_grad_(False).eval())
        return self.loaded[name]

    def free(self, *names: str) -> None:
        for name in names:
            self.loaded.pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def skeleton(self, name: str) -> nn.Module:
        """A component without weights, on the meta device: for counting."""
        cls, config = self.kinds[name][0], self.source.config(name)
        with torch.device("meta"):
            return cast(nn.Module, cls.from_config(config) if hasattr(cls, "from_config") else cls(cls.config_class.from_dict(config)))
