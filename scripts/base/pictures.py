"""The pictures beside the base: what the demo and the tests teach it, none of which it has seen.

Needs what data.py names, npm's @iconify-json/fluent-emoji-high-contrast@1.2.6, and `pip install resvg-py`.
Fluent Emoji's high-contrast drawings, black ink on white, for the demo (24) and held out (100); its 3D ones, which the judge knows; an owl.
"""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from data import Emoji, emojis, on_white
from PIL import Image
from views import views

from finetune import randomness
from finetune.bases import DEMO_HELD_OUT, DEMO_PICTURES, OWL

TESTS = Path(__file__).parents[2] / "tests"
SUBJECT = "owl"  # of the concepts that the base never saw, the one that README and tests teach

# What the demo learns the style from: 24 pictures of many kinds. Their names are never in the demo's prompts.
DEMO_NAMES = """
tiger face;frog face;ladybug;octopus;rose;mushroom;red apple;watermelon;pizza;ice cream cone;birthday cake;teapot;
rocket;red car;police car;house;bell;hammer;magnet;green book;yellow heart;robot face;ghost;balloon
"""


class Ink:
    """The high-contrast drawings: shapes in one colour, which lie as SVG in an icon set."""

    def __init__(self, node_modules: Path) -> None:
        folder = node_modules / "@iconify-json" / "fluent-emoji-high-contrast"
        self.icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))["icons"]
        self.by_code = json.loads((folder / "chars.json").read_text(encoding="utf-8"))

    def body(self, e: Emoji) -> str | None:
        code = e.unified.lower()
        icon = self.by_code.get(code) or self.by_code.get(code.replace("-fe0f", ""))
        return self.icons[icon]["body"] if icon in self.icons else None

    def draw(self, e: Emoji, size: int) -> Image.Image:
        """Grey, `size` x `size`; the drawings fill their 32 units to the edge, so that a margin of one is added."""
        import resvg_py

        paper = '<rect x="-1" y="-1" width="34" height="34" fill="#fff"/>'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 34 34" color="#000">{paper}{self.body(e)}</svg>'
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)))).convert("L")


def write(folder: Path, chosen: list[Emoji], save: Callable[[Emoji, Path], None], kind: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for e in chosen:
        stem = folder / e.name.replace(" ", "-")
        save(e, stem.with_suffix(kind))
        stem.with_suffix(".txt").write_text(f"{e.name}\n", encoding="utf-8")


def save_fluent(e: Emoji, path: Path) -> None:
    assert e.fluent
    on_white(e.fluent, 128).save(path, quality=92, method=6)


def demo_and_held_out(everyone: list[Emoji], ink: Ink) -> None:
    names = [n.strip() for n in DEMO_NAMES.replace("\n", "").split(";") if n.strip()]
    known = {e.name: e for e in everyone if e.taught and ink.body(e)}
    others = sorted((e for n, e in known.items() if n not in names), key=lambda e: randomness.number("ink held-out", e.name))
    write(DEMO_PICTURES, [known[n] for n in names], lambda e, path: ink.draw(e, 128).save(path, optimize=True), ".png")
    write(DEMO_HELD_OUT, others[:100], lambda e, path: ink.draw(e, 64).save(path, optimize=True), ".png")
    print(f"pictures: {len(names)} in {DEMO_PICTURES}, 100 of {len(others)} others in {TESTS / 'ink'}")


def train(node_modules: Path, out: Path) -> None:
    everyone = emojis(node_modules)
    demo_and_held_out(everyone, Ink(node_modules))
    by_name = {e.name: e for e in everyone}
    write(TESTS / "fluent", [by_name[p.stem.replace("-", " ")] for p in sorted(DEMO_PICTURES.glob("*.png"))], save_fluent, ".webp")
    views(by_name[SUBJECT], OWL, held=False)
    views(by_name[SUBJECT], TESTS / SUBJECT, held=True)
