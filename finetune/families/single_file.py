"""A single-file checkpoint in its original layout, unpacked once into a folder that later runs reuse.

The configs and tokenizers that such a file lacks ship with the package (`configs/`), so that none of it needs a network.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from finetune import files, tensor_files
from finetune.errors import AccessError, ConfigError
from finetune.families import encoder_files
from finetune.families.catalogue import FAMILIES, of_pipeline
from finetune.families.hashes import file_hash
from finetune.families.source import Source
from finetune.families.spec import ZERO_SNR, FamilySpec, Original, Shapes

if TYPE_CHECKING:
    from torch import Tensor

CONFIGS = Path(__file__).parent / "configs"
HINT = "save it as a diffusers folder, then --base FOLDER"


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    name: str  # of the configs
    prediction: str | None  # where the file or the user says another than the configs
    zero_snr: bool
    half: bool
    absent: tuple[str, ...] = ()  # text encoders that it does not hold, and that its pipeline may lack
    beside: Mapping[str, Path] = field(default_factory=dict)  # others that it does not hold, in files of their own

    @property
    def configs(self) -> dict[str, Any]:
        """The base's JSON files, by their path in a diffusers folder."""
        configs = _lacking(shipped_configs(self.name), self.absent)
        if self.prediction:
            configs["scheduler/scheduler_config.json"] |= {"prediction_type": self.prediction} | (ZERO_SNR if self.zero_snr else {})
        return configs


PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def unpickle(path: Path) -> Path:
    """A pickled checkpoint as safetensors in the cache, under the hash of its bytes, made anew; takes tensors alone and runs nothing.

    Raises:
        AccessError: it holds anything but tensors, or is damaged.
    """
    import torch

    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # refuses what would run
        state = contents.get("state_dict", contents)
        tensors = _apart({str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)})
    except Exception as e:  # UnpicklingError, RuntimeError, AttributeError, EOFError: whatever a file that is no checkpoint leads to
        raise AccessError(f"--base {path}: not a checkpoint of tensors alone ({type(e).__name__}); nothing in it was run") from e
    target = _unpickled(path)
    files.write_bytes(target, tensor_files.sealed(tensors, {}))
    return target


def _apart(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Each in memory of its own, as safetensors has them: tied weights share theirs."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        out[name] = (tensor.clone() if place in seen else tensor).contiguous()
        seen.add(place)
    return out


def unpickled(path: Path) -> Path | None:
    """What `unpickle` made of the same bytes earlier, if it is whole."""
    target = _unpickled(path)
    with suppress(OSError, ValueError):
        tensor_files.check_seal(target)
        files.touch(target)
        return target
    return None


def _unpickled(path: Path) -> Path:
    return files.cache_root() / "bases" / f"{file_hash(path)}.safetensors"


def identify(path: Path, prediction: str | None) -> Checkpoint:
    """What a file holds, from its keys.

    Raises:
        AccessError: not safetensors, no whole checkpoint of a known family, or a Stable Diffusion 2 that does not say what it predicts.
    """
    try:
        files.check_regular(path)
        with safe_open(path, "pt") as f:
            shapes, metadata = {k: f.get_slice(k).get_shape() for k in f.keys()}, f.metadata() or {}
            spec, told = _recognised(path, shapes)
            half = f.get_slice(told.probe).get_dtype() in ("F16", "BF16", "F8_E4M3", "F8_E5M2")
    except (SafetensorError, OSError) as e:
        raise AccessError(f"--base {path}: not a readable safetensors file ({e})") from e
    name = told.base
    missing = [part for part, start in told.text.items() if not any(key.startswith(start) for key in shapes)]
    beside = encoder_files.beside(path, told.files, missing)
    missing = [part for part in missing if part not in beside]
    if needed := [part for part in missing if not spec.encoders[part].optional]:
        named = f"put {told.files[needed[0]][0]} beside it; or " if needed[0] in told.files else ""
        hint = f"{named}--base {name} takes it from the Hub; or {HINT}"
        raise AccessError(f"--base {path}: holds no text encoder ({told.text[needed[0]]}…)", hint)
    declared = {"epsilon": "epsilon", "v": "v_prediction"}.get(metadata.get("modelspec.prediction_type", ""))
    marked = "v_prediction" if "v_pred" in shapes else declared
    if marked and prediction and marked != prediction:
        raise ConfigError(f"model.prediction_type {prediction}: {path.name} says {marked}", "leave it out")
    if name == "sd21":
        if not (marked or prediction):
            raise AccessError(
                f"--base {path}: a single file of Stable Diffusion 2 does not say whether it predicts epsilon or v",
                "--set model.prediction_type=v_prediction for the 768-pixel model, epsilon for the 512-pixel one",
            )
        name = "sd21" if (marked or prediction) == "v_prediction" else "sd21-base"
    return Checkpoint(path, name, marked or prediction, "ztsnr" in shapes, half, tuple(missing), beside)


def _recognised(path: Path, shapes: Shapes) -> tuple[FamilySpec, Original]:
    """By the family whose model it is.

    Raises:
        AccessError: it is nobody's, or of a model that is not known.
    """
    said = [(spec, spec.recognise(shapes)) for spec in FAMILIES]
    for spec, told in said:
        if isinstance(told, Original):
            return spec, told
    if unknown := next((told for _, told in said if told), None):
        raise AccessError(f"--base {path}: a checkpoint of an unknown kind, {unknown}", HINT)
    some = ", ".join(sorted(shapes)[:2])
    raise AccessError(f"--base {path}: not a checkpoint of a known family (its keys begin {some})", "an adapter is no base")


def undrawable(source: Source) -> str | None:
    """Why no picture could be drawn from a single file of a base; None if one could."""
    spec = source.spec
    if not spec.single_file:
        return f"there is none for {spec.name}"
    told = spec.recognise(spec.telling(source))
    return None if isinstance(told, Original) else f"as one file it is of an unknown kind, {told}"


def shipped_configs(name: str) -> dict[str, Any]:
    """The JSON files of a known base, by their path in a diffusers folder."""
    configs: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return configs


def _lacking(configs: dict[str, Any], parts: Collection[str]) -> dict[str, Any]:
    """A base's JSON files without text encoders that it does not have."""
    index = dict(configs["model_index.json"])
    spec = _spec(index)
    gone = [folder for part in parts for folder in (part, spec.encoders[part].tokenizer)]
    kept = {name: value for name, value in configs.items() if name.partition("/")[0] not in gone}
    return kept | {"model_index.json": index | {folder: [None, None] for folder in gone}}


def _spec(index: dict[str, Any]) -> FamilySpec:
    """Of a known base, by its `model_index.json`."""
    spec = of_pipeline(index["_class_name"])
    assert spec is not None  # noqa: S101  a known base's
    return spec.of(index)


def write_configs(configs: dict[str, Any], folder: Path) -> None:
    """A diffusers folder without weights: its JSON files, and the tokenizers."""
    for name, value in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    for encoder in _spec(configs["model_index.json"]).encoders.values():
        for file in (CONFIGS / encoder.words.shipped).iterdir():
            shutil.copyfile(file, folder / encoder.tokenizer / file.name)


def skeleton(configs: dict[str, Any]) -> Path:
    """`write_configs` into the cache, once."""
    digest = hashlib.sha256(json.dumps(configs, sort_keys=True).encode()).hexdigest()
    folder = files.cache_root() / "bases" / f"configs-{digest}"
    files.publish(folder, lambda p: write_configs(configs, p))
    files.touch(folder)
    return folder


def unpack_checkpoint(checkpoint: Checkpoint) -> Path:
    """The checkpoint as a diffusers folder in the cache, under the hash of its bytes and configs.

    Raises:
        AccessError: the weights do not fit the configs.
    """
    config = skeleton(checkpoint.configs)
    bytes_of = " ".join(map(files.sha256, (checkpoint.path, *checkpoint.beside.values())))
    key = hashlib.sha256(f"{bytes_of} {config.name}".encode()).hexdigest()
    folder = files.cache_root() / "bases" / key
    if folder.exists():
        if _whole(folder):
            files.touch(folder)
            return folder
        print(f"note: {folder} is damaged, or of an older version: the base is unpacked anew", file=sys.stderr)
        shutil.rmtree(files.put_aside(folder), ignore_errors=True)
    import diffusers
    import torch

    index = checkpoint.configs["model_index.json"]
    cls = getattr(diffusers, index["_class_name"])
    spec, dtype = _spec(index), torch.float16 if checkpoint.half else torch.float32
    given: dict[str, Any] = {name: None for name, value in spec.pipeline_options.items() if value is None}
    given |= {part: encoder_files.opened(path, spec, part, config, dtype) for part, path in checkpoint.beside.items()}
    try:
        pipeline = cls.from_single_file(
            str(checkpoint.path),
            config=str(config),
            local_files_only=True,
            dtype=dtype,
            **given,
        )
    except (ValueError, KeyError, RuntimeError) as e:
        raise AccessError(f"--base {checkpoint.path}: does not fit {checkpoint.name} ({str(e).splitlines()[0]})", HINT) from e
    files.publish(folder, lambda p: _save(pipeline, checkpoint.configs, p))
    return folder


def _save(pipeline: Any, configs: dict[str, Any], folder: Path) -> None:
    pipeline.save_pretrained(folder, safe_serialization=True)
    scheduler = "scheduler/scheduler_config.json"  # as the file says, not as the library guesses from its keys
    (folder / scheduler).write_text(json.dumps(configs[scheduler], indent=1), encoding="utf-8")
    (folder / HASHES).write_text(json.dumps(_hashes(folder), sort_keys=True), encoding="utf-8")


HASHES = "sha256.json"  # of all other files of an unpacked base


def _whole(folder: Path) -> bool:
    try:
        return bool(json.loads(files.read_text(folder / HASHES)) == _hashes(folder))
    except (OSError, ValueError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != HASHES)
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in paths}
