"""Packs the newest checkpoint into `finetune/bases/tiny` in fp16."""

import json
import shutil
from pathlib import Path

import torch
from clip import WINDOW
from data import emojis
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, ResNetForImageClassification
from unet import build, schedule

from finetune.bases import TINY, TINY_NAMES
from finetune.results import checkpoint


def pipeline(out: Path) -> StableDiffusionPipeline:
    """The whole base with the averaged weights of the newest checkpoint."""
    newest = next(checkpoint.valid(out / "checkpoints"))
    tensors, facts = checkpoint.load(newest), checkpoint.facts(newest)
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
    TINY_NAMES.write_text("".join(f"{e.name}\n" for e in emojis(node_modules) if e.taught), encoding="utf-8")
    size = sum(f.stat().st_size for f in TINY.rglob("*") if f.is_file())
    print(f"pack done: {size / 1e6:.1f} MB in {TINY}")
