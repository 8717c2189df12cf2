"""Draws everything that the embedded base was taught, once: `python scripts/contact_sheet.py` writes finetune/bases/tiny.webp."""

import tempfile
from pathlib import Path

from PIL import Image

from finetune.bases import TINY_NAMES, TINY_SHEET
from finetune.sampling import draw
from finetune.sampling.generate import Request, generate

COLUMNS, SIDE = 16, 64


def rows(names: list[str], pictures: list[Image.Image]) -> list[Image.Image]:
    parts = range(0, len(names), COLUMNS)
    return [draw.sheet([("", pictures[i : i + COLUMNS])], names[i : i + COLUMNS], side=SIDE) for i in parts]


def main() -> None:
    names = TINY_NAMES.read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        made = generate(Request(names, base="tiny", out=Path(folder), seed=1), lambda text: None)
        parts = rows(names, [draw.open_png(p["path"]) for p in made])
    page = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    page.save(TINY_SHEET, quality=80, method=6)
    print(f"{len(names)} pictures in {TINY_SHEET}, {TINY_SHEET.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
