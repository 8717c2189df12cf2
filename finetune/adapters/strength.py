"""How strong an adapter file means its changes to be, where that stands beside its tensors. Torch-free."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import files
from finetune.errors import DataError


@dataclass(frozen=True)
class Alphas:
    """The strengths that stand beside the tensors: in a PEFT folder's config, or in diffusers' metadata."""

    configs: Mapping[str, Mapping[str, Any]]  # by part; "" is any

    def strength(self, part: str, module: str, rank: int) -> float | None:
        config = self.configs.get(part) or self.configs.get("denoiser" if not part.startswith("text_encoder") else part)
        if not config:
            return None
        # As PEFT looks them up: the first pattern that the end of the name matches, as a regular expression.
        patterns = config.get("alpha_pattern") or {}
        key = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)
        alpha = patterns[key] if key else config.get("lora_alpha", config.get("r"))
        return None if alpha is None else float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def alphas_of(path: Path, metadata: Mapping[str, str]) -> Alphas:
    """Raises:
    DataError: a config that cannot be read, or that asks for what is not understood here.
    """
    try:
        if path.is_dir():
            config = json.loads(files.read_text(path / "adapter_config.json"))
            float(config["lora_alpha"]), int(config["r"]), dict(config.get("alpha_pattern") or {})
            if config.get("peft_type", "LORA") != "LORA":
                raise DataError(
                    f"{path}: a PEFT adapter of the type {config['peft_type']} is not understood here", "load it with PEFT itself"
                )
            return Alphas({"denoiser": config})
        configs: dict[str, dict[str, Any]] = {}
        for name, value in json.loads(metadata.get("lora_adapter_metadata", "{}")).items():
            part, _, setting = name.partition(".")
            configs.setdefault(part if part.startswith("text_encoder") else "denoiser", {})[setting] = value
        for config in configs.values():
            float(config.get("lora_alpha") or 0), dict(config.get("alpha_pattern") or {})
        return Alphas(configs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path}: no readable r and lora_alpha ({e})") from e
