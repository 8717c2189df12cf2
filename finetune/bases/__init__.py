"""The embedded base model: a small latent diffusion model in the Stable Diffusion layout, trained by scripts/train_base.py."""

from pathlib import Path
from typing import Any

from finetune import files
from finetune.text import from_json

ROOT = Path(__file__).parent
TINY = ROOT / "tiny"
REPAINTING = f"{TINY.name}-inpainting"  # the same, which reads a mask: bases/repainting.py
TINY_NAMES = ROOT / "tiny.txt"  # what it was taught, a name a line
TINY_SHEET = ROOT / "tiny.webp"  # a picture of each, drawn by it: scripts/contact_sheet.py
DEMO_PICTURES = ROOT / "demo"
DEMO_HELD_OUT = ROOT / "demo-held-out"  # 100 more in the same style, to measure on
OWL = ROOT / "owl"  # a subject that the base has never seen


def embedded(base: str) -> bool:
    """Whether a base is the embedded one, a copy of it, or a fine-tune of it: by its denoiser's config, whatever it is called."""
    if not base:  # any other, as where rates are told: the folder that ft is in does not matter
        return False
    if base in (TINY.name, REPAINTING):
        return True
    try:
        theirs = from_json(files.read_text(files.home(base) / "unet" / "config.json"))
    except (OSError, ValueError):  # no folder, or one of another kind: what is wrong with it is said later
        return False
    return isinstance(theirs, dict) and _shape(theirs) == _shape(from_json(files.read_text(TINY / "unet" / "config.json")))


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of the network, without what a library notes of itself, and what else it reads beside noise."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "in_channels"}
