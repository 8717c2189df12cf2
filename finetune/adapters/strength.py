"""How strong an adapter file means its changes to be, where that stands beside its tensors. Torch-free."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from finetune import files
from finetune.errors import DataError, line
from finetune.text import from_json


@dataclass(frozen=True)
class Alphas:
    """The strengths that stand beside the tensors: in a PEFT folder's config, or in diffusers' metadata."""

    configs: Mapping[str, Mapping[str, Any]]  # by part; "" is any

    @cached_property
    def _patterns(self) -> dict[str, "Patterns"]:
        return {part: Patterns.of(config) for part, config in self.configs.items()}

    def strength(self, part: str, module: str, rank: int) -> float | None:
        name = part if self.configs.get(part) or part.startswith("text_encoder") else "denoiser"
        config = self.configs.get(name)
        if not config:
            return None
        alpha = self._patterns[name].find(module)
        if alpha is None:
            alpha = config.get("lora_alpha", config.get("r"))
        if alpha is None:
            return None
        return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


MOST_WILD = 100  # patterns with a wildcard in a file
DEPTH = 32  # of a layer's name
_WILD = ".*"


@dataclass(frozen=True)
class Patterns:
    """An `alpha_pattern`: values by the ends of layers' names. PEFT takes them for regular expressions; in a file from elsewhere one could
    run for ever, so that here each is a name, in which `.*` is whatever stands there and `^` in front begins it."""

    values: Sequence[Any]
    places: Mapping[str, int]  # of the names without a wildcard: which comes first counts
    wild: Sequence[tuple[int, str]]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Patterns":
        """Raises:
        ValueError: a pattern that is no name, or too many with a wildcard.
        """
        values = config.get("alpha_pattern") or {}
        wild = [(i, p) for i, p in enumerate(values) if _WILD in p]
        if odd := next((p for p in values if not _NAME.fullmatch(p)), None):
            raise ValueError(f"the alpha_pattern {line(odd, 60)} is no layer's name, nor one with .* in it")
        if len(wild) > MOST_WILD:
            raise ValueError(f"{len(wild)} entries of alpha_pattern have a wildcard; {MOST_WILD} are read")
        plain = {p.replace("\\.", "."): i for i, p in reversed([*enumerate(values)]) if _WILD not in p}
        return cls([*values.values()], plain, wild)

    def find(self, module: str) -> Any:
        """The value for a layer; None where no pattern is its."""
        parts = module.split(".")[-DEPTH:]
        ends = [f"^{module}", *(".".join(parts[i:]) for i in range(len(parts)))]
        matching = [self.places[end] for end in ends if end in self.places]
        matching += [i for i, pattern in self.wild if _fits(pattern, ends)]
        return self.values[min(matching)] if matching else None


_NAME = re.compile(r"\^?(?:[\w-]|\\?\.|\.\*)*")


def _fits(pattern: str, ends: Sequence[str]) -> bool:
    """Whether one of a name's ends is such a pattern. What stands between wildcards is looked for from left to right, once."""
    first, *middle, last = pattern.replace("\\.", ".").split(_WILD)
    for end in ends:
        if not (end.startswith(first) and end.endswith(last) and len(end) >= len(first) + len(last)):
            continue
        at, stop = len(first), len(end) - len(last)
        for piece in middle:
            at = end.find(piece, at, stop)
            if at < 0:
                break
            at += len(piece)
        else:
            return True
    return False


def alphas_of(path: Path, metadata: Mapping[str, str]) -> Alphas:
    """Raises:
    DataError: a config that cannot be read, or that asks for what is not understood here.
    """
    try:
        if path.is_dir():
            config = from_json(files.read_text(path / "adapter_config.json"))
            _check(config | {"lora_alpha": config["lora_alpha"], "r": config["r"]})
            if config.get("peft_type", "LORA") != "LORA":
                raise DataError(
                    f"{path}: a PEFT adapter of the type {config['peft_type']} is not understood here", "load it with PEFT itself"
                )
            return Alphas({"denoiser": config})
        configs: dict[str, dict[str, Any]] = {}
        for name, value in from_json(metadata.get("lora_adapter_metadata", "{}")).items():
            part, _, setting = name.partition(".")
            configs.setdefault(part if part.startswith("text_encoder") else "denoiser", {})[setting] = value
        for config in configs.values():
            _check(config)
        return Alphas(configs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
        raise DataError(f"{path}: no readable r and lora_alpha ({line(str(e))})") from e


def _check(config: Mapping[str, Any]) -> None:
    """Raises:
    ValueError, TypeError, AttributeError: a strength that is no number, or a pattern that is not understood.
    """
    numbers = [config[name] for name in ("lora_alpha", "r") if config.get(name) is not None]
    for number in (*numbers, *dict(config.get("alpha_pattern") or {}).values()):
        if isinstance(number, bool) or not isinstance(number, int | float) or not isfinite(number):
            raise ValueError(f"{number!r} is no strength")
    Patterns.of(config)
