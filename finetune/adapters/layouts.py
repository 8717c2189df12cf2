"""Key layouts of LoRA files, and what each layout's readers take for the strength.

Every layout holds the same numbers with the strength folded in, so that alpha = rank, said in the one place its readers look:
kohya in `.alpha` tensors, diffusers in the header's `lora_adapter_metadata`, PEFT in `adapter_config.json`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.errors import DataError

State = dict[str, Tensor]
Pairs = Mapping[str, tuple[Tensor, Tensor]]  # module -> (down [r, ...], up [out, r, ...]), strength folded in

PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}


@dataclass(frozen=True)
class Layout:
    """`stem(part, module)` begins the keys of a module; `down` and `up` end them."""

    stem: Callable[[str, str], str]
    down: str
    up: str
    alpha: str | None = None

    def state(self, pairs: Pairs, part: str) -> State:
        out: State = {}
        for module, (down, up) in pairs.items():
            stem = self.stem(part, module)
            out |= {stem + self.down: down, stem + self.up: up}
            if self.alpha:
                out[stem + self.alpha] = torch.tensor(float(down.shape[0]), dtype=up.dtype)
        return out


LAYOUTS = {
    "kohya": Layout(lambda part, m: f"{PREFIX[part]}_{m.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight", ".alpha"),
    "diffusers": Layout(lambda part, m: f"{part}.{m}", ".lora_A.weight", ".lora_B.weight"),
    "peft": Layout(lambda part, m: f"base_model.model.{m}", ".lora_A.weight", ".lora_B.weight"),
}


def diffusers_metadata(pairs: Pairs, part: str) -> str:
    """The small subset of LoraConfig that every reader knows (a field that an older peft lacks makes it refuse the file)."""
    return json.dumps({f"{part}.{k}": v for k, v in small_config(pairs).items()}, sort_keys=True)


def small_config(pairs: Pairs) -> dict[str, Any]:
    ranks = {d.shape[0] for d, _ in pairs.values()}
    if len(ranks) != 1:
        raise DataError(f"this layout needs one rank for all modules, found {sorted(ranks)}", "use the kohya layout")
    rank = ranks.pop()
    return {"r": rank, "lora_alpha": rank, "target_modules": sorted(pairs), "lora_dropout": 0.0, "bias": "none"}


def peft_config(pairs: Pairs, base: str) -> dict[str, Any]:
    return small_config(pairs) | {"peft_type": "LORA", "base_model_name_or_path": base, "inference_mode": True, "task_type": None}


def recognise(keys: list[str]) -> str:
    """The layout of a file's keys.

    Raises:
        DataError: none of ours.
    """
    if keys and all(k.startswith("base_model.model.") for k in keys):
        return "peft"
    if keys and all(".lora_A." in k or ".lora_B." in k for k in keys):
        return "diffusers"
    if keys and all(k.startswith("lora_") and (".lora_down." in k or ".lora_up." in k or k.endswith(".alpha")) for k in keys):
        return "kohya"
    raise DataError("not a LoRA file in the kohya, diffusers or PEFT layout", f"its first key is {keys[0] if keys else 'missing'}")
