"""Views of a subject: the pictures that a few-shot method learns from, and others that are held out."""

import random
from pathlib import Path

from data import Emoji, on_white
from PIL import Image

STYLES = ("noto", "twemoji")


def view(image: Image.Image, turn: float, scale: float, move: tuple[float, float]) -> Image.Image:
    """A 64x64 picture on white, turned (degrees), scaled and moved (pixels)."""
    big = image.resize((256, 256), Image.Resampling.LANCZOS)
    big = big.rotate(turn, Image.Resampling.BICUBIC, fillcolor="white", translate=(int(4 * move[0]), int(4 * move[1])))
    side = int(256 * scale)
    page = Image.new("RGB", (256, 256), "white")
    page.paste(big.resize((side, side), Image.Resampling.LANCZOS), ((256 - side) // 2, (256 - side) // 2))
    return page.resize((64, 64), Image.Resampling.LANCZOS)


def views(e: Emoji, folder: Path, held: bool, count: int = 4) -> Path:
    """`count` pictures of a subject in either style, captioned with the style: to train on, or mirrored and turned further, held out."""
    folder.mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        for i in range(count):
            r = random.Random(f"{e.name}{style}{i}{held}")  # noqa: S311  variants, no secrets
            image, most = on_white(e.pictures[style]), 12 if held else 6 * (i > 0)
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if held else image
            little = 1.0 if held or i else 0.0
            move = (little * r.uniform(-4, 4), little * r.uniform(-4, 4))
            view(image, r.uniform(-most, most), 1 + little * r.uniform(-0.1, 0.1), move).save(folder / f"{style}-{i}.png")
            (folder / f"{style}-{i}.txt").write_text(f"{style} style\n", encoding="utf-8")
    return folder
