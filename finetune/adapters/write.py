"""Writing one adapter file: whole, read back, and compared."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from finetune import files, tensor_files
from finetune.adapters import layouts
from finetune.adapters.read import named, read
from finetune.errors import ConfigError, FinetuneError
from finetune.header import tensors_file

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def export(
    modules: layouts.Modules,
    path: Path,
    layout: str,
    family: str,
    dtype: str | None,
    facts: Mapping[str, str],
    base: str,
    embeddings: layouts.Embeddings | None = None,
) -> None:
    """Writes `modules` (a `.safetensors` file, or for PEFT a folder) as `dtype` (None: as they are), reads it back and compares.

    `embeddings` come along in kohya's layout, which alone has a place for them.

    Raises:
        FinetuneError: a number is not finite, or does not fit the number format.
        DataError: the layout cannot hold them, or the family is not known here.
    """
    names = named(path, family)
    to = DTYPES[dtype] if dtype else None
    cast = {place: replace(w, tensors={k: t.to(to or t.dtype).contiguous() for k, t in w.tensors.items()}) for place, w in modules.items()}
    state = {k: t.contiguous() for k, t in (layouts.LAYOUTS[layout](cast, names) | layouts.bundle(embeddings or {})).items()}
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise FinetuneError(
                f"{key}: not finite as {dtype or tensor.dtype}; nothing was written", "lower --lr, or --set run.save_dtype=fp32"
            )
    metadata = hashed(state, facts)
    metadata["sshs_model_hash"] = metadata["modelspec.hash_sha256"].removeprefix("0x")
    metadata["sshs_legacy_hash"] = legacy_hash(state, {k: v for k, v in metadata.items() if k.startswith("ss_")})
    if layout == "diffusers":
        metadata["lora_adapter_metadata"] = layouts.diffusers_metadata(cast)
    if layout == "peft":
        if path.exists() and not (path / "adapter_config.json").exists():
            raise ConfigError(f"{path}: is there already, and is no adapter", "choose another --name")
        files.write(path, lambda p: _peft_folder(p, state, metadata, layouts.peft_config(cast, base)))
    else:
        files.write_bytes(path, tensor_files.safetensors(state, metadata))
    # A projection that changes nothing does not come back out of a fused layer.
    silent = {place for place, w in cast.items() if w.kind == "lora" and not w.tensors["up"].any()}
    if not _same(state, load_file(tensors_file(path))) or read(path, family).modules.keys() | silent != modules.keys():
        raise FinetuneError(f"{path}: what was read back differs from what was written", "check the disk")


def _same(meant: layouts.State, back: layouts.State) -> bool:
    return meant.keys() == back.keys() and all(torch.equal(t, back[k]) for k, t in meant.items())


def _peft_folder(folder: Path, state: layouts.State, metadata: Mapping[str, str], config: Mapping[str, Any]) -> None:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(tensor_files.safetensors(state, metadata))
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")


def legacy_hash(state: layouts.State, facts: Mapping[str, str]) -> str:
    """The eight digits that older interfaces know a file by: of 64 KiB at 1 MiB of the file with its `ss_*` facts alone."""
    return hashlib.sha256(tensor_files.safetensors(state, facts)[0x100000:0x110000]).hexdigest()[:8]


def hashed(state: Mapping[str, Tensor], facts: Mapping[str, str]) -> dict[str, str]:
    """A header's facts with ModelSpec's hash of the model: sha256 of the file's bytes after its header."""
    data = memoryview(tensor_files.safetensors(state, {}))
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    return {**facts, "modelspec.hash_sha256": f"0x{digest}"}
