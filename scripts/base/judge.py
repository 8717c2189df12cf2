"""The judge: a small ResNet that names the emoji and its style. It never conditions anything, and it has seen Fluent 3D.

One head of N names and five styles; its pooled features are the measure of similarity. It learns from blends of two styles of one
name too, with their shares as the target, so that its style log-odds say how much, and not only which.
"""

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from clip import crop
from data import STYLES as LEARNED
from data import emojis, pixels
from transformers import ResNetConfig, ResNetForImageClassification

SEED, STEPS, BATCH, LR = 14, 2500, 96, 2e-3
STYLES = (*LEARNED, "fluent")


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
    drawn = [(e.name, style, path) for e in known for style, path in (e.pictures | {"fluent": e.fluent}).items() if path]
    images = torch.from_numpy(pixels([path for _, _, path in drawn]))
    name_of = torch.tensor([names.index(name) for name, _, _ in drawn])
    style_of = torch.tensor([STYLES.index(style) for _, style, _ in drawn])
    one_hot = F.one_hot(style_of, len(STYLES)).float()
    others = [(name_of == n).nonzero()[:, 0] for n in range(len(names))]
    judge = build(names)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LR, weight_decay=0.05, fused=True)
    g, began = torch.Generator().manual_seed(SEED), time.time()
    judge.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        index = torch.randint(len(images), (BATCH,), generator=g)
        second = torch.stack([o[int(torch.randint(len(o), (), generator=g))] for o in (others[n] for n in name_of[index].tolist())])
        share = torch.rand(BATCH, generator=g) * (torch.rand(BATCH, generator=g) < 0.5)  # half of the pictures are blends
        mixed = torch.lerp(images[index], images[second], share[:, None, None, None])
        styles = torch.lerp(one_hot[index], one_hot[second], share[:, None])
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(distort(mixed, g)).logits.float()
        name, style = logits[:, : len(names)], logits[:, len(names) :]
        loss = F.cross_entropy(name, name_of[index], label_smoothing=0.1) + 0.3 * F.cross_entropy(style, styles, label_smoothing=0.02)
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
