"""The embedded base as one that repaints: the same weights, and five channels more that begin at 0, as those of Stable Diffusion's own
inpainting model began (its model card). It draws as the embedded base does until it has learned to look at them."""

import json
import shutil
from pathlib import Path

from finetune import files
from finetune.bases import REPAINTING, TINY
from finetune.text import from_json

MORE = 5  # channels: a mask, and four of the picture without what it covers
WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = ("scheduler", "text_encoder", "tokenizer", "vae")  # as they are


def repainting() -> Path:
    """Its folder, which is made once and kept in the cache."""
    folder = files.cache_root() / "bases" / f"{REPAINTING}-{files.sha256(TINY / 'unet' / WEIGHTS)[:32]}"
    files.publish(folder, _fill)
    files.touch(folder)
    return folder


def _fill(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    for part in PARTS:
        shutil.copytree(TINY / part, folder / part)
    index = from_json(files.read_text(TINY / "model_index.json"))
    config = from_json(files.read_text(TINY / "unet" / "config.json"))
    config["in_channels"] += MORE
    index["_class_name"] = "StableDiffusionInpaintPipeline"
    weights = load_file(TINY / "unet" / WEIGHTS)
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = np.concatenate([first, np.zeros((len(first), MORE, *first.shape[2:]), first.dtype)], 1)
    (folder / "unet").mkdir()
    save_file(weights, folder / "unet" / WEIGHTS)
    for path, values in ((folder / "unet" / "config.json", config), (folder / "model_index.json", index)):
        path.write_text(json.dumps(values, indent=1), encoding="utf-8")
