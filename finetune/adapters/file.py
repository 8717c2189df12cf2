"""One adapter file: written whole, read back, compared; its header says what it is and how it must be used."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from finetune import files
from finetune.adapters import layouts
from finetune.errors import ConfigError, DataError, FinetuneError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
KEY = "ft.contract"


@dataclass(frozen=True)
class Contract:
    """How the adapter must be used: what `ft generate` honours and refuses to contradict."""

    base: str  # short name, Hub id or folder name; never a path
    base_revision: str | None
    base_sha256: str  # of the denoiser the adapter was trained on
    family: str
    prediction_type: str
    resolution: int
    trigger: str | None
    guidance: float
    steps: int  # sampling steps
    sampler: str
    rank: int
    training_alpha: float
    trained_steps: int
    clip_skip: int = 0


def header(contract: Contract, title: str, architecture: str, kohya_version: str) -> dict[str, str]:
    """ModelSpec 1.0.1, the `ss_*` keys that readers look at, trigger words, and the contract. No dates, hosts or paths."""
    side = f"{contract.resolution}x{contract.resolution}"
    facts = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": side,
        "modelspec.prediction_type": contract.prediction_type.removesuffix("_prediction"),
        "ss_base_model_version": kohya_version,
        "ss_v2": str(kohya_version.startswith("sd_v2")),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(contract.rank),
        "ss_network_alpha": str(float(contract.rank)),  # as written: the training alpha is folded in
        "ss_output_name": title,
        "ss_sd_model_name": contract.base,
        "ss_resolution": f"({contract.resolution}, {contract.resolution})",
        "ss_steps": str(contract.trained_steps),
        KEY: json.dumps(asdict(contract), sort_keys=True),
    }
    if contract.trigger:
        facts |= {"modelspec.trigger_phrase": contract.trigger, "trained_words": contract.trigger}
    return facts


def export(pairs: layouts.Pairs, path: Path, layout: str, part: str, dtype: str, facts: Mapping[str, str], base: str) -> None:
    """Writes `pairs` (a `.safetensors` file, or for PEFT a folder), reads it back and compares.

    Raises:
        FinetuneError: a number is not finite, or does not fit the number format.
    """
    cast = {}
    for module, (down, up) in pairs.items():
        cast[module] = (down.to(DTYPES[dtype]).contiguous(), up.to(DTYPES[dtype]).contiguous())
        if not all(torch.isfinite(x).all() for x in cast[module]):
            raise FinetuneError(f"{module}: not finite as {dtype}; nothing was written", "lower --lr, or --set run.save_dtype=fp32")
    form = layouts.LAYOUTS[layout]
    state = form.state(cast, part)
    metadata = {**facts, "modelspec.hash_sha256": f"0x{data_hash(state)}", "sshs_model_hash": data_hash(state)}
    if layout == "diffusers":
        metadata["lora_adapter_metadata"] = layouts.diffusers_metadata(cast, part)
    if layout == "peft":
        if path.exists() and not (path / "adapter_config.json").exists():
            raise ConfigError(f"{path}: is there already, and is no adapter", "choose another --name")
        files.write(path, lambda p: _peft_folder(p, state, metadata, layouts.peft_config(cast, base)))
    else:
        files.write_bytes(path, files.safetensors(state, metadata))
    back, meant = read(path).pairs, {form.stem(part, m): pair for m, pair in cast.items()}
    if back.keys() != meant.keys() or not all(torch.equal(x, y) for k in meant for x, y in zip(meant[k], back[k], strict=True)):
        raise FinetuneError(f"{path}: what was read back differs from what was written", "check the disk")


def _peft_folder(folder: Path, state: layouts.State, metadata: Mapping[str, str], config: Mapping[str, Any]) -> None:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(files.safetensors(state, metadata))
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")


def data_hash(state: layouts.State) -> str:
    """sha256 of the file's bytes after its header: what ModelSpec and the kohya tools mean by a model's hash."""
    data = files.safetensors(state, {})
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


@dataclass(frozen=True)
class Adapter:
    path: Path
    layout: str
    pairs: dict[str, tuple[Tensor, Tensor]]  # by the stem of their keys -> down, up
    metadata: dict[str, str]

    @property
    def contract(self) -> Contract | None:
        """The inference contract, or None for a file of another tool."""
        try:
            return Contract(**json.loads(self.metadata[KEY]))
        except (KeyError, ValueError, TypeError):
            return None


def read(path: Path) -> Adapter:
    """Reads a file, or a PEFT folder.

    Raises:
        DataError: missing, not safetensors, no LoRA, unpaired or with non-finite numbers.
    """
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{path}: no such adapter file")
    try:
        state = load_file(file)
        with safe_open(file, "pt") as f:
            metadata = f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise DataError(f"{path}: not a readable safetensors file ({e})") from e
    try:
        name = layouts.recognise(list(state))
    except DataError as e:
        raise DataError(f"{path}: {e.message}", e.hint) from e
    layout = layouts.LAYOUTS[name]
    stems = sorted(k.removesuffix(layout.down) for k in state if k.endswith(layout.down))
    for stem in stems:
        down, up = state[stem + layout.down], state.get(stem + layout.up)
        if up is None or down.shape[0] != up.shape[1]:
            raise DataError(f"{path}: {stem} has no matching {layout.up}")
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise DataError(f"{path}: {stem} holds numbers that are not finite")
    scale = _peft_strength(path / "adapter_config.json") if path.is_dir() else 1.0
    pairs = {s: (state[s + layout.down], state[s + layout.up] * scale if scale != 1 else state[s + layout.up]) for s in stems}
    return Adapter(path, name, pairs, metadata)


def _peft_strength(path: Path) -> float:
    """lora_alpha / r of a PEFT folder.

    Raises:
        DataError: no readable config, or one with more than one strength.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        strength = float(config["lora_alpha"]) / float(config["r"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as e:
        raise DataError(f"{path}: no readable r and lora_alpha ({e})") from e
    if odd := [k for k in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora") if config.get(k)]:
        raise DataError(f"{path}: {', '.join(odd)} is not understood here", "load it with PEFT itself")
    return strength
