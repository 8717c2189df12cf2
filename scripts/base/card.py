"""Measures the packed base and writes its model card and contact sheet."""

import math
from pathlib import Path
from typing import Any

import torch
from data import STYLES, Emoji, emojis, on_white, pixels
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from transformers import AutoTokenizer, CLIPModel
from vae import reconstruction_mse

from finetune import randomness
from finetune.bases import TINY
from finetune.data import crop
from finetune.evaluation.judge import Judge, among_top
from finetune.sampling import draw

NAMES, SHEET, GUIDANCE, STEPS, SEED = 200, 60, 4.0, 30, 2026


@torch.no_grad()
def pictures(pipe: StableDiffusionPipeline, prompts: list[str], guidance: float = GUIDANCE) -> list[Image.Image]:
    """One picture a prompt from a fixed seed a prompt, 20 at a time."""
    pipe.set_progress_bar_config(disable=True)
    out: list[Image.Image] = []
    for start in range(0, len(prompts), 20):
        some = prompts[start : start + 20]
        seeds = [randomness.generator(SEED, "card", p) for p in some]
        out += pipe(some, num_inference_steps=STEPS, guidance_scale=guidance, generator=seeds).images
    return out


def ask(chosen: list[Emoji]) -> tuple[list[str], list[Path]]:
    """A prompt for each name, its styles by turns, and the real picture of it."""
    styles = [list(e.pictures)[i % len(e.pictures)] for i, e in enumerate(chosen)]
    return [f"{e.name}, {s} style" for e, s in zip(chosen, styles, strict=True)], [
        e.pictures[s] for e, s in zip(chosen, styles, strict=True)
    ]


def contact_sheet(images: list[Image.Image], names: list[str], columns: int = 10) -> Image.Image:
    """Numbered, without names: a stranger names what they see, then reads the list."""
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    return draw.sheet([(f"{i * columns + 1}-{i * columns + len(r)}", r) for i, r in enumerate(rows)], side=96)


def train(node_modules: Path, out: Path) -> None:
    everyone = emojis(node_modules)
    taught = [e for e in everyone if e.taught]
    pipe = StableDiffusionPipeline.from_pretrained(TINY, dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    judge, clip = Judge(), CLIPModel.from_pretrained(TINY / "clip", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY / "tokenizer")
    chosen = sorted((e for e in taught if e.name in judge.names), key=lambda e: randomness.number(SEED, "names", e.name))[:NAMES]
    prompts, real_files = ask(chosen)
    images = pictures(pipe, prompts)
    right = [judge.names.index(e.name) for e in chosen]
    _, named, _ = judge(images)
    captions = [f"{n}, {s} style" for n in judge.names for s in STYLES]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        stacked = torch.stack([crop.to_tensor(i) for i in images])
        scores = clip(input_ids=ids, pixel_values=stacked).logits_per_image.view(len(images), len(judge.names), len(STYLES)).amax(2)
    _, real, _ = judge([on_white(f) for f in real_files])
    held = [p for e in everyone if e.held_out and e.fluent for p in (e.fluent,)]
    facts: dict[str, Any] = {
        "judge": (among_top(named, right, 1), among_top(named, right, 5)),
        "judge on the real pictures": (among_top(real, right, 1), among_top(real, right, 5)),
        "CLIP": (among_top(scores, right, 1), among_top(scores, right, 5)),
        "mse": reconstruction_mse(pipe.vae, torch.from_numpy(pixels([p for e in taught for p in e.pictures.values()]))),
        "mse fluent": reconstruction_mse(pipe.vae, torch.from_numpy(pixels(held))),
    }
    sheet_names = sorted(taught, key=lambda e: randomness.number(SEED, "sheet", e.name))[:SHEET]
    sheet_prompts, _ = ask(sheet_names)
    contact_sheet(pictures(pipe, sheet_prompts), sheet_prompts).save(TINY / "contact-sheet.png", optimize=True)
    (TINY / "README.md").write_text(card(facts, taught, len(judge.names), sheet_prompts, pipe, out), encoding="utf-8")
    print({k: v if isinstance(v, float) else tuple(round(x, 3) for x in v) for k, v in facts.items()})


def card(facts: dict[str, Any], taught: list[Emoji], names: int, prompts: list[str], pipe: StableDiffusionPipeline, out: Path) -> str:
    log = [line for line in (out / "unet.log").read_text(encoding="utf-8").splitlines() if line.startswith("unet")]
    (TINY / "training.log").write_text("\n".join(log) + "\n", encoding="utf-8")
    steps = [line.split()[2] for line in log if line.startswith("unet step")][-1]
    parameters = {n: sum(p.numel() for p in getattr(pipe, n).parameters()) / 1e6 for n in ("unet", "vae", "text_encoder")}
    interval = 1.96 * math.sqrt(facts["judge"][0] * (1 - facts["judge"][0]) / NAMES)
    listed = "\n".join(f"{i + 1}. {p}" for i, p in enumerate(prompts))
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [text-to-image, diffusers, stable-diffusion, emoji]
---
# tiny: the embedded base of finetune

A latent diffusion model in the Stable Diffusion layout that draws 64x64 emoji in four styles: "noto", "twemoji", "blob", "emojione".
It exists so that every command, demo and test of `ft` runs offline, on real pictures, on any CPU. It draws nothing else.

| part | class | million parameters |
|---|---|---|
| unet | UNet2DConditionModel, 16x16x4 latents | {parameters["unet"]:.2f} |
| vae | AutoencoderKL | {parameters["vae"]:.2f} |
| text_encoder | CLIPTextModel, 4 layers of 128, own BPE of 2,048, 24 tokens | {parameters["text_encoder"]:.2f} |
| clip | CLIPModel: the same text tower with its image tower | |
| judge | ResNetForImageClassification, trained apart, conditions nothing | |

## Data

{len(taught)} names, {sum(len(e.pictures) for e in taught)} pictures, with captions such as "rocket, noto style"; a quarter of what it saw
were other emoji (all but flags, symbols, skin tones and families) under the names of their classes: "animal, blob style". 40 concepts,
listed in `scripts/base/data.py`, were shown to no part but the judge. Of the Fluent 3D emoji (MIT) only the judge saw any.
Noto emoji and its older "blob" drawings, Google: Apache-2.0. Twemoji, Twitter, Inc. and other contributors: CC-BY 4.0.
EmojiOne 2, emoji provided free by EmojiOne: CC-BY 4.0. See NOTICE at the root of the package's repository.

## Training

`scripts/train_base.py`, parts vae, clip, judge, unet; each part holds its seed and settings. Epsilon prediction, scaled-linear noise,
min-SNR 5, batch 64, 10 % caption dropout, a quarter of the captions with a word that means nothing (so that a trigger word starts from
a whole picture), half of the pictures moved, tinted, shaded and mirrored a little (so that none is learnt by heart), EMA 0.999,
{steps} steps on two CPU cores in bf16 autocast. The autoencoder's posterior is a point: the denoiser learned from its means.
[training.log](training.log) is the denoiser's own. It shows that the shipped weights were cooled down once before, to step 7,400, and went
on from the full rate.

## Measured

`python scripts/train_base.py card --node-modules DIR --out DIR` makes these figures and the sheet again: DDIM, {STEPS} steps,
guidance {GUIDANCE:g}, one picture for each of {NAMES} names drawn at random from those that were taught, unpicked.

| rate at which the right name is found among {names} | top-1 | top-5 |
|---|---|---|
| judge, generated pictures | {facts["judge"][0]:.1%} (+-{interval:.1%}) | {facts["judge"][1]:.1%} |
| judge, the real pictures | {facts["judge on the real pictures"][0]:.1%} | {facts["judge on the real pictures"][1]:.1%} |
| CLIP, generated pictures | {facts["CLIP"][0]:.1%} | {facts["CLIP"][1]:.1%} |

Reconstruction MSE on pixels in [-1, 1]: {facts["mse"]:.4f} on the taught pictures, {facts["mse fluent"]:.4f} on the Fluent pictures
of the 40 held-out concepts.

A reader who saw nothing but this sheet named 56 of the 60 pictures (not the eyeglasses, which were taken for sunglasses, the battery,
the poultry leg and the volleyball).

![60 prompts drawn at random, one picture each](contact-sheet.png)

<details><summary>What the sheet was asked for, row by row</summary>

{listed}

</details>
"""
