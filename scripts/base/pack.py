"""Packs the newest checkpoint into `finetune/bases/tiny` in fp16, and the pictures of the demo, the README and the tests."""

import json
import shutil
from pathlib import Path

import torch
from clip import WINDOW
from data import Emoji, emojis, on_white
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, ResNetForImageClassification
from unet import build, schedule
from views import views

from finetune.data import keys
from finetune.training import checkpoint

ROOT = Path(__file__).parents[2]
TINY, DEMO, HELD_OUT = ROOT / "finetune" / "bases" / "tiny", ROOT / "finetune" / "bases" / "demo", ROOT / "tests" / "fluent"
SUBJECT = "owl"  # of the concepts that the base never saw, the one that README and tests teach

# What the demo learns the style from: 24 pictures of many kinds. Their names are never in the demo's prompts.
DEMO_NAMES = """
tiger face;frog face;ladybug;octopus;rose;mushroom;red apple;watermelon;pizza;ice cream cone;birthday cake;teapot;
rocket;red car;police car;house;bell;hammer;magnet;green book;yellow heart;robot face;ghost;balloon
"""


def pipeline(out: Path) -> StableDiffusionPipeline:
    """The whole base with the averaged weights of the newest checkpoint."""
    tensors, facts = checkpoint.load(next(checkpoint.valid(out / "checkpoints")))
    unet = build()
    unet.load_state_dict({n: tensors[f"ema/{n}"] for n in unet.state_dict()})
    clip, vae = CLIPModel.from_pretrained(out / "clip"), AutoencoderKL.from_pretrained(out / "vae")
    text = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(clip.text_model.state_dict())
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer", model_max_length=WINDOW)
    print(f"pack: step {facts['step']}")
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet.to(memory_format=torch.contiguous_format), scheduler=schedule(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def write_pictures(folder: Path, chosen: list[Emoji], side: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for e in chosen:
        assert e.fluent
        stem = e.name.replace(" ", "-")
        on_white(e.fluent, side).save(folder / f"{stem}.webp", quality=92, method=6)
        (folder / f"{stem}.txt").write_text(f"{e.name}\n", encoding="utf-8")


def train(node_modules: Path, out: Path) -> None:
    shutil.rmtree(TINY, ignore_errors=True)
    pipeline(out).to(dtype=torch.float16).save_pretrained(TINY)
    CLIPModel.from_pretrained(out / "clip").half().save_pretrained(TINY / "clip")
    if (out / "judge").exists():
        ResNetForImageClassification.from_pretrained(out / "judge").half().save_pretrained(TINY / "judge")
    for config in TINY.rglob("*.json"):  # where the parts lay on this machine is nobody's business
        lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
        # ... and the weights are half precision on the disk alone: what opens them without being told opens all of them as float32
        kept = "".join(line for line in lines if '"_name_or_path"' not in line).replace('"dtype": "float16"', '"dtype": "float32"')
        config.write_text(kept, encoding="utf-8")
        json.loads(config.read_text(encoding="utf-8"))
    names = [n.strip() for n in DEMO_NAMES.replace("\n", "").split(";") if n.strip()]
    everyone = emojis(node_modules)
    subject = next(e for e in everyone if e.name == SUBJECT)
    views(subject, TINY.parent / SUBJECT, held=False)
    views(subject, ROOT / "tests" / SUBJECT, held=True)
    taught = {e.name: e for e in everyone if e.taught and e.fluent}
    write_pictures(DEMO, [taught[n] for n in names], 128)
    others = sorted((e for n, e in taught.items() if n not in names), key=lambda e: keys.number("fluent held-out", e.name))
    write_pictures(HELD_OUT, others[:100], 64)
    size = sum(f.stat().st_size for f in TINY.rglob("*") if f.is_file())
    print(f"pack done: {size / 1e6:.1f} MB in {TINY}")
