"""An autoencoder as files: a folder of diffusers, and one file in the original layout, as it is handed round and other tools read it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from finetune import files, tensor_files
from finetune.adapters.contract import Contract
from finetune.adapters.model import cast
from finetune.adapters.write import hashed
from finetune.errors import AccessError, ConfigError
from finetune.families import autoencoder_file
from finetune.families.autoencoder_file import WEIGHTS
from finetune.families.source import Source
from finetune.header import header_of

DTYPE = "fp32"  # in another the encoder would be rounded too, and with it the latents that a base knows


def in_place(source: Source, path: Path, weights: bool = True) -> Source:
    """The base with another autoencoder: see `with_autoencoder`. A single file has no config that would tell its latents' scale, so that of
    another family may fit: one that was written here says whose it is.

    Raises:
        AccessError: it fits no base of this family.
    """
    where = autoencoder_file.with_autoencoder(source, path, weights)
    path = files.home(path)
    contract = Contract.of(header_of(path).metadata) if path.is_file() else None
    if contract and contract.family != source.spec.name:
        was, here = f"was trained for {contract.family}", f"{source.id} is {source.spec.name}"
        raise AccessError(f"--vae {path}: {was}, and {here}", autoencoder_file.HINT)
    return where


def check_folder(folder: Path) -> None:
    """Raises:
    ConfigError: a folder that is no autoencoder's is in the place of one.
    """
    if folder.exists() and not (folder / WEIGHTS).exists():
        raise ConfigError(f"{folder}: is there already, and is no autoencoder", "choose another --out or --name")


def write_original(path: Path, net: nn.Module, metadata: Mapping[str, str]) -> None:
    """Raises:
    FinetuneError: a number is not finite.
    """
    state = autoencoder_file.original(cast(net, DTYPE, "vae"))
    files.write_bytes(path, tensor_files.safetensors(state, hashed(state, metadata)))


def write_folder(path: Path, net: nn.Module, config: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """`config` is that of the base. Raises as `write_original`, and as `check_folder`."""
    check_folder(path)
    state = cast(net, DTYPE, "vae")

    def fill(folder: Path) -> None:
        folder.mkdir()
        files.write_text(folder / "config.json", json.dumps(dict(config), indent=2, sort_keys=True) + "\n")
        files.write_bytes(folder / WEIGHTS, tensor_files.safetensors(state, hashed(state, metadata)))

    files.write(path, fill)
