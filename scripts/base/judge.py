"""The judge: a small ResNet that names the emoji and its style. It never conditions anything, and it has seen Fluent 3D.

One head of N names and three styles; its pooled features are the measure of similarity.
"""

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from clip import crop
from data import emojis, pixels
from transformers import ResNetConfig, ResNetForImageClassification

SEED, STEPS, BATCH, LR = 14, 2500, 96, 2e-3
STYLES = ("noto", "twemoji", "fluent")


def build(names: list[str]) -> ResNetForImageClassification:
    torch.manual_seed(SEED)
    labels = [*names, *(f"{s} style" for s in STYLES)]
    config = ResNetConfig(
        embedding_size=24, hidden_sizes=[32, 64, 96, 160], depths=[1, 1, 1, 1], layer_type="basic",
        id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)},
    )  # fmt: skip
    return ResNetForImageClassification(config)


def distort(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Shifts, scales, colour and noise, then for half of the pictures a blur: what a weak generator gets wrong must not rule."""
    x = crop(x, g)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.5, x, soft)


def train(node_modules: Path, out: Path, steps: int = STEPS) -> None:
    known = [e for e in emojis(node_modules) if (e.named or e.held_out) and e.fluent]
    names = sorted({e.name for e in known})
    images = torch.from_numpy(pixels([p for e in known for p in (e.noto, e.twemoji, e.fluent) if p]))
    name_of = torch.tensor([names.index(e.name) for e in known for _ in STYLES])
    style_of = torch.tensor([i for _ in known for i in range(len(STYLES))])
    judge = build(names)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LR, weight_decay=0.05, fused=True)
    g, began = torch.Generator().manual_seed(SEED), time.time()
    judge.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        index = torch.randint(len(images), (BATCH,), generator=g)
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(distort(images[index], g)).logits.float()
        name, style = logits[:, : len(names)], logits[:, len(names) :]
        loss = F.cross_entropy(name, name_of[index], label_smoothing=0.1) + 0.3 * F.cross_entropy(style, style_of[index])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            hit = (name.argmax(1) == name_of[index]).float().mean()
            print(f"judge step {step} loss {loss.item():.3f} top1 {hit:.3f} seconds {time.time() - began:.0f}", flush=True)
    judge.eval()
    judge.save_pretrained(out / "judge")
    with torch.no_grad():
        logits = torch.cat([judge(b).logits for b in images.split(128)])
    hit = (logits[:, : len(names)].argmax(1) == name_of).float().mean()
    style_hit = (logits[:, len(names) :].argmax(1) == style_of).float().mean()
    print(f"judge done: clean pictures named {hit:.3f}, styled {style_hit:.3f}", flush=True)
