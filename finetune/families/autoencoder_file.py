"""Files of an autoencoder alone: its names in the original layout, and another autoencoder in the place of a base's own."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import files, tensor_files
from finetune.errors import AccessError, DataError, line
from finetune.families import contents
from finetune.families.hashes import file_hash
from finetune.families.source import Source, reason
from finetune.header import header_of

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "diffusion_pytorch_model.safetensors"
HINT = "one of the base's own kind, such as what `ft vae --base` writes; a .safetensors file, or a folder as diffusers writes it"
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
EARLIER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
FLOATS = ("F64", "F32", "F16", "BF16")
# Of a config: what makes the latents and their sizes; the rest, such as the size of the training pictures, changes nothing that is asked.
TELLING = (
    "in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block", "down_block_types", "up_block_types",
    "mid_block_add_attention", "norm_num_groups", "act_fn", "use_quant_conv", "use_post_quant_conv", "scaling_factor", "shift_factor",
    "latents_mean", "latents_std",
)  # fmt: skip


def original_key(key: str, levels: int) -> str:
    """The original name of an autoencoder of so many `levels`, which the original counts from the other end on the way up."""
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.([01])", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    for ours, theirs in ATTENTION.items():
        key = key.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    return key


def earlier_key(key: str) -> str:
    """The name that earlier versions of diffusers wrote, and later ones read, such as the Hub's copies of sd-vae-ft-mse have."""
    for ours, theirs in EARLIER.items():
        key = key.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
    return key


def levels_of(keys: Iterable[str]) -> int:
    """Of an autoencoder with these names of weights."""
    return 1 + max(int(m[1]) for key in keys if (m := re.match(r"encoder\.down_blocks\.(\d)", key)))


def original(state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """An autoencoder as its original code names it, whose attention has convolutions for projections."""
    levels = levels_of(state)
    square = {k for k, t in state.items() if "mid_block.attentions" in k and t.ndim == 2}
    return {original_key(k, levels): t[:, :, None, None] if k in square else t for k, t in state.items()}


def check_file(path: Path) -> None:
    """What needs no base, and no library, to be told of a file or folder.

    Raises:
        DataError: it is missing, or would run code.
    """
    if not path.exists():
        raise DataError(f"--vae {path}: no such file or folder", "what `ft vae` wrote, or an autoencoder of diffusers")
    if path.is_file() and path.suffix != ".safetensors":
        raise DataError(f"--vae {path}: only .safetensors files are opened; others can run code", "convert it to safetensors")


def with_autoencoder(source: Source, path: Path, weights: bool = True) -> Source:
    """The base with another autoencoder, of a folder or a single file, which is unpacked for it unless no `weights` are asked for.

    Raises:
        AccessError: it is missing, would run code, or is of another kind than the base's own.
    """
    path = files.home(path)
    try:
        check_file(path)
    except DataError as e:
        raise AccessError(e.message, e.hint) from e
    if path.is_dir():
        folder = path / "vae" if (path / "model_index.json").exists() else path
        _check_config(source, folder, path)
        _names(source, _weights(folder, path))
        return replace(source, vae=folder, vae_id=path.resolve().name)
    names = _names(source, path)
    return replace(source, vae=_unpacked(source, path, names) if weights else None, vae_id=path.name)


def _check_config(source: Source, folder: Path, path: Path) -> None:
    """Raises:
    AccessError: the folder holds no autoencoder, or one that makes other latents than the base's.
    """
    from diffusers import AutoencoderKL

    try:
        config, _ = contents.cleaned("vae", "config.json", contents.read_json(folder / "config.json"))
    except (OSError, ValueError) as e:
        raise AccessError(f"--vae {path}: holds no autoencoder: config.json cannot be read ({reason(e)})", HINT) from e
    usual = {k: p.default for k, p in inspect.signature(AutoencoderKL.__init__).parameters.items()}
    own = source.config("vae")
    for key in TELLING:
        here, there = (_plain(values.get(key, usual.get(key))) for values in (config, own))
        if here != there:
            said, base = (line(json.dumps(value), 60) for value in (here, there))
            raise AccessError(f"--vae {path}: has {key} {said}, and the autoencoder of {source.id} {base}", HINT)


def _weights(folder: Path, path: Path) -> Path:
    """The one file of a folder that libraries open as an autoencoder.

    Raises:
        AccessError: there is none, at most that of a variant.
    """
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    variants = sorted(file.name for file in folder.glob("*.safetensors") if contents.WEIGHTS.fullmatch(file.name))
    raise AccessError(f"--vae {path}: holds no {WEIGHTS}", f"--vae {folder / variants[0]}" if variants else HINT)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _names(source: Source, path: Path) -> dict[str, str]:
    """diffusers' name of each weight of the base's autoencoder -> that in the file, which has its shapes.

    Raises:
        AccessError: it cannot be read, lacks a weight, or one has another shape or number format.
    """
    from finetune.families.load import networks

    try:
        header = header_of(path)
    except DataError as e:
        raise AccessError(f"--vae {e.message}", e.hint or "it is incomplete or damaged: copy or download it again") from e
    shapes = header.shapes
    expected = {key: tuple(tensor.shape) for key, tensor in networks(source).skeleton("vae").state_dict().items()}
    levels = levels_of(expected)
    spellings: list[Callable[[str], str]] = []
    for prefix in ("", "first_stage_model.", "vae."):
        spellings += [lambda key, p=prefix: p + original_key(key, levels), lambda key, p=prefix: p + key]  # type: ignore[misc]
    spellings.append(earlier_key)
    best = max(spellings, key=lambda spelled: sum(spelled(key) in shapes for key in expected))
    names = {key: best(key) for key in expected}
    if lacking := [name for name in names.values() if name not in shapes]:
        some = ", ".join(sorted(shapes)[:2])
        raise AccessError(f"--vae {path}: is no autoencoder of {source.id}'s kind: lacks {lacking[0]} (its keys begin {line(some)})", HINT)
    for key, name in names.items():
        if shapes[name] not in (expected[key], (*expected[key], 1, 1)):
            here, there = list(shapes[name]), list(expected[key])
            raise AccessError(f"--vae {path}: {name} is {here}, and that of {source.id} {there}", HINT)
        if header.dtypes[name] not in FLOATS:
            raise AccessError(f"--vae {path}: {name} is in {line(header.dtypes[name], 20)}, which is no precision of an autoencoder", HINT)
    return names


def _unpacked(source: Source, path: Path, names: Mapping[str, str]) -> Path:
    """The file as a diffusers folder in the cache, under the hash of its bytes and of the base's config, which it lacks."""
    from safetensors.torch import load_file

    config = json.dumps(source.config("vae"), indent=2, sort_keys=True)
    key = hashlib.sha256(f"{file_hash(path)} {config}".encode()).hexdigest()
    folder = files.cache_root() / "bases" / key
    with suppress(OSError, ValueError):
        tensor_files.check_seal(folder / WEIGHTS)
        files.touch(folder)
        return folder
    files.remove(folder)  # where it is damaged
    there = load_file(path)
    state = {ours: there[name].flatten(2).squeeze(-1) if there[name].ndim == 4 and "attentions" in ours else there[name]
             for ours, name in names.items()}  # fmt: skip

    def fill(place: Path) -> None:
        place.mkdir(parents=True)
        files.write_text(place / "config.json", config)
        files.write_bytes(place / WEIGHTS, tensor_files.sealed(state, {"format": "pt"}))

    files.publish(folder, fill)
    return folder
