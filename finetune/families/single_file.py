"""A single-file checkpoint in the original Stable Diffusion layout, unpacked once into a folder that later runs reuse."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from finetune import files
from finetune.data.cache import default_root
from finetune.errors import AccessError

# A cross-attention key that every Stable Diffusion 1 and 2 checkpoint has; its width tells them apart.
PROBE = "model.diffusion_model.output_blocks.5.1.transformer_blocks.0.attn2.to_k.weight"
HINT = "save it as a diffusers folder with its own scheduler config, then --base FOLDER"


def width(path: Path) -> int:
    """The width of the text encoder the checkpoint was made for.

    Raises:
        AccessError: not safetensors, or not a whole Stable Diffusion checkpoint.
    """
    try:
        with safe_open(path, "pt") as f:
            names = f.keys()
            if PROBE not in names:
                some = ", ".join(sorted(names)[:2])
                raise AccessError(f"--base {path}: not a Stable Diffusion 1.x checkpoint (its keys begin {some})", "an adapter is no base")
            return int(f.get_slice(PROBE).get_shape()[1])
    except (SafetensorError, OSError) as e:
        raise AccessError(f"--base {path}: not a readable safetensors file ({e})") from e


def unpack(path: Path, config: Path) -> Path:
    """The checkpoint as a diffusers folder in the cache, under the hash of its bytes; `config` holds the family's own configs.

    Raises:
        AccessError: the weights do not fit the configs.
    """
    folder = default_root() / "bases" / files.sha256(path)
    if (folder / "model_index.json").exists():
        return folder
    import torch
    from diffusers import StableDiffusionPipeline

    with safe_open(path, "pt") as f:
        half = f.get_slice(PROBE).get_dtype() == "F16"
    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            str(path), config=str(config), local_files_only=True, safety_checker=None, dtype=torch.float16 if half else torch.float32
        )
    except (ValueError, KeyError, RuntimeError) as e:
        raise AccessError(f"--base {path}: does not fit Stable Diffusion 1.5 ({str(e).splitlines()[0]})", HINT) from e
    files.write(folder, lambda p: pipeline.save_pretrained(p, safe_serialization=True))
    return folder
