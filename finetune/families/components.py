"""A base's networks, each loaded when a phase needs it and freed after."""

import inspect
from math import prod
from typing import Any, cast

import diffusers
import torch
import transformers
from torch import nn

from finetune.families.source import Source
from finetune.families.spec import Component
from finetune.header import header_of

Kind = tuple[Any, torch.dtype]  # a class of diffusers or transformers, and the precision that it runs in


SLACK = 1.02  # some readers fill in what a file may leave out


def _keys(cls: Any) -> frozenset[str]:
    """What a network's class knows of a config."""
    config_class = getattr(cls, "config_class", None) or cls
    return frozenset(inspect.signature(config_class.__init__).parameters)


def _kind(component: Component, dtype: torch.dtype) -> Kind:
    """For a run in `dtype`."""
    library = diffusers if hasattr(diffusers, component.cls) else transformers
    precision = torch.float32 if component.precision == "fp32" else dtype
    if component.precision == "wide" and precision == torch.float16:
        precision = torch.bfloat16
    return getattr(library, component.cls), precision


class Components:
    """Those with weights that a run uses, by folder; `dtype` is the number format that it asks for."""

    def __init__(self, source: Source, device: torch.device, dtype: torch.dtype) -> None:
        self.source, self.device = source, device
        self.kinds = {part: _kind(source.spec.components[part], dtype) for part in source.spec.parts}
        self.loaded: dict[str, nn.Module] = {}

    def load(self, name: str, dtype: torch.dtype | None = None) -> nn.Module:
        """A frozen component, in the precision that it runs in unless told: masters must not have been rounded.

        Raises:
            AccessError: its weights are missing or damaged.
        """
        if name not in self.loaded or dtype not in (None, next(self.loaded[name].parameters()).dtype):
            cls, usual = self.kinds[name]
            self._check_size(name)
            with self.source.reading(name, _keys(cls)) as folder:
                module, loading_info = cls.from_pretrained(
                    folder, variant=self.source.variant_of(name), use_safetensors=True, dtype=dtype or usual, output_loading_info=True
                )
                if missing := sorted({*loading_info["missing_keys"]} & {name for name, _ in module.named_parameters()}):
                    raise ValueError(f"its weights lack {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
            self.loaded[name] = cast(nn.Module, module.to(self.device).requires_grad_(False).eval())
        return self.loaded[name]

    def _check_size(self, name: str) -> None:
        """Raises:
        AccessError: the config is that of a network that is larger than the weights that are there: it is counted before it is made.
        """
        with self.source.reading(name):
            numbers = sum(p.numel() for p in self.skeleton(name).parameters())
            there = 0
            for path in self.source.weights(name):
                there += sum(map(prod, header_of(path).shapes.values()))
            if numbers > there * SLACK:
                raise ValueError(f"its config is that of a network of {numbers:,} numbers, and its weights are {there:,}")

    def free(self, *names: str) -> None:
        for name in names:
            self.loaded.pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def skeleton(self, name: str) -> nn.Module:
        """A component without weights, on the meta device: for counting."""
        cls, config = self.kinds[name][0], self.source.config(name)
        with self.source.reading(name), torch.device("meta"):
            return cast(nn.Module, cls.from_config(config) if hasattr(cls, "from_config") else cls(cls.config_class.from_dict(config)))
