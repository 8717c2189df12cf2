"""How much better a trained decoder brings pictures back that the embedded base's autoencoder holds badly: bench_decoder.py --out DIR

Draws two kinds of pictures, 96 to train on and 24 held out of each: thin lines and circles in black on white, and ribs in grey on black,
blurred like an x-ray. Trains a decoder on each with the recipe `tiny-vae`, and holds it against the base's on the held-out pictures and on
the demo's 100 held-out emoji, of which it has seen none. Prints a table.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from finetune import cli
from finetune.bases import TINY
from finetune.data.crop import square, to_tensor
from finetune.evaluation.heldout import Interval, paired
from finetune.evaluation.round_trip import psnr
from finetune.families import load, source
from finetune.families.autoencoder import decode, encode
from finetune.families.autoencoder_file import with_autoencoder
from finetune.results import summary

SIDE, SCALE = 64, 4  # pixels, and how many times finer it is drawn


def lines(seed: int) -> Image.Image:
    rng, full = np.random.default_rng(seed), SIDE * SCALE
    image = Image.new("RGB", (full, full), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(5, 9)):
        pen.line([(float(x), float(y)) for x, y in rng.integers(0, full, (4, 2))], fill="black", width=6)
        radius, x, y = (float(n) for n in (rng.integers(20, 60), *rng.integers(0, full, 2)))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline="black", width=6)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def ribs(seed: int) -> Image.Image:
    rng, full = np.random.default_rng(seed), SIDE * SCALE
    image = Image.new("L", (full, full), int(rng.integers(0, 40)))
    pen, middle = ImageDraw.Draw(image), full / 2 + float(rng.integers(-20, 20))
    for i in range(7):
        y = 30.0 + 30 * i + float(rng.integers(-5, 5))
        for side, begin in ((-1, 180), (1, 270)):
            reach = side * float(rng.integers(70, 110))
            box = (min(middle, middle + reach), y - 30, max(middle, middle + reach), y + 30)
            pen.arc(box, begin, begin + 90, fill=int(rng.integers(150, 255)), width=int(rng.integers(4, 9)))
    pen.rectangle((middle - 8, 10, middle + 8, full - 10), fill=200)
    return image.filter(ImageFilter.GaussianBlur(3)).resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("RGB")


def change(pictures: list[Image.Image], vae: Path) -> tuple[float, float, Interval]:
    """Mean PSNR by the base and by `vae`, and the paired difference."""
    base = source.resolve_base("tiny")
    pixels = torch.stack([to_tensor(square(picture.convert("RGB"), SIDE)) for picture in pictures])
    nets = [load.family(where).parts.load("vae") for where in (base, with_autoencoder(base, vae))]
    latents, _ = encode(nets[0], pixels)
    before, after = (psnr(pixels, decode(net, latents)) for net in nets)
    return float(before.mean()), float(after.mean()), paired(before, after)


def trained(name: str, kind: Callable[[int], Image.Image], out: Path) -> Path:
    """The file of a decoder that saw 96 pictures of a kind."""
    for side, first, count in (("train", 0, 96), ("held", 1000, 24)):
        (out / name / side).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            kind(i).save(out / name / side / f"{i:04d}.png")
    folders = ["--data", str(out / name / "train"), "--holdout", str(out / name / "held"), "--out", str(out / name / "run")]
    if cli.run(["vae", "--recipe", "tiny-vae", *folders]):
        raise SystemExit(1)
    return summary.read(out / name / "run").summary.written["vae"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    emoji: list[Image.Image] = [Image.open(path) for path in sorted((TINY.parent / "demo-held-out").glob("*.png"))]
    print("| trained on | measured on | base | trained | difference |\n|---|---|---|---|---|")
    for name, kind in {"lines": lines, "ribs": ribs}.items():
        vae = trained(name, kind, out)
        others = [kind(i) for i in range(1000, 1024)]
        for shown, pictures in ((f"24 other {name}", others), (f"{len(emoji)} emoji", emoji)):
            before, after, d = change(pictures, vae)
            print(f"| {name} | {shown} | {before:.2f} dB | {after:.2f} dB | {d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f}) |")


if __name__ == "__main__":
    main()
