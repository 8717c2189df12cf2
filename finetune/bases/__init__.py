"""The embedded base model: a small latent diffusion model in the Stable Diffusion layout, trained by scripts/train_base.py."""

from pathlib import Path

ROOT = Path(__file__).parent
TINY = ROOT / "tiny"
TINY_NAMES = ROOT / "tiny.txt"  # what it was taught, a name a line
TINY_SHEET = ROOT / "tiny.webp"  # a picture of each, drawn by it: scripts/contact_sheet.py
DEMO_PICTURES = ROOT / "demo"
DEMO_HELD_OUT = ROOT / "demo-held-out"  # 100 more in the same style, to measure on
OWL = ROOT / "owl"  # a subject that the base has never seen
