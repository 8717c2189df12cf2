"""The embedded base's CLIP: a small text tower and image tower trained contrastively on the same pairs."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import SIZE, STYLES, Emoji, captions, emojis, pixels
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

SEED, STEPS, BATCH, LR = 12, 1600, 128, 1e-3
VOCAB, WINDOW, WIDTH = 2048, 24, 128


def train_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """A byte-level BPE of 2,048 entries in CLIP's layout: bytes, bytes that end a word, merges, start, end."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCAB - 2, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False)
    )
    import json

    learned = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    entries = alphabet + [a + "</w>" for a in alphabet]
    merges: list[tuple[str, str]] = []
    known = set(entries)
    for a, b in learned:
        if len(entries) == VOCAB - 2:
            break
        if a in known and b in known:
            merges.append((a, b))
            if a + b not in known:
                known.add(a + b)
                entries.append(a + b)
    entries += [f"<|unused{i}|>" for i in range(VOCAB - 2 - len(entries))]
    vocab = {t: i for i, t in enumerate([*entries, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=WINDOW)


def build() -> CLIPModel:
    torch.manual_seed(SEED)
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
    }
    text = tower | {
        "vocab_size": VOCAB,
        "max_position_embeddings": WINDOW,
        "bos_token_id": VOCAB - 2,
        "eos_token_id": VOCAB - 1,
        "pad_token_id": VOCAB - 1,
    }
    vision = tower | {"image_size": SIZE, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    clip.set_attn_implementation("eager")  # 1.7 times faster than fused attention in bf16 on a CPU at this size
    return clip


def crop(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """[B, 3, 64, 64] -> the same, each shifted and scaled a little and its colours nudged."""
    b = len(x)
    scale, shift = 1 + 0.15 * (2 * torch.rand(b, 1, 1, generator=g) - 1), 0.12 * (2 * torch.rand(b, 2, 1, generator=g) - 1)
    theta = torch.cat([torch.eye(2).expand(b, 2, 2) * scale, shift], dim=2)
    moved = F.grid_sample(x - 1, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False) + 1
    gain = 1 + 0.15 * (2 * torch.rand(b, 3, 1, 1, generator=g) - 1)
    return ((moved + 1) * gain - 1).clamp(-1, 1) + 0.03 * torch.randn(x.shape, generator=g)


def pairs(seen: list[Emoji], row: dict[tuple[int, str], int], g: torch.Generator) -> Iterator[tuple[list[int], list[str]]]:
    """Batches of different emoji, each in one of its styles with one of its captions; taught names come twice as often."""
    odds = torch.tensor([2.0 if e.named else 1.0 for e in seen])
    while True:
        chosen = torch.multinomial(odds, BATCH, generator=g).tolist()
        index, texts = [], []
        for i in chosen:
            styles = list(seen[i].pictures)
            style = styles[int(torch.randint(len(styles), (), generator=g))]
            options = captions(seen[i], style)
            texts.append(options[int(torch.multinomial(torch.tensor([p for _, p in options]), 1, generator=g))][0])
            index.append(row[i, style])
        yield index, texts


def train(node_modules: Path, out: Path, steps: int = STEPS) -> None:
    seen = [e for e in emojis(node_modules) if not e.held_out]
    row = {key: n for n, key in enumerate((i, style) for i, e in enumerate(seen) for style in e.pictures)}
    images = torch.from_numpy(pixels([p for e in seen for p in e.pictures.values()]))
    texts = sorted({c for e in seen for s in STYLES for c, _ in captions(e, s)})
    tokenizer, clip = train_tokenizer(texts), build()
    tokenizer.save_pretrained(out / "tokenizer")
    ids = {t: torch.tensor(i) for t, i in zip(texts, tokenizer(texts, padding="max_length", truncation=True)["input_ids"], strict=True)}
    optimizer = torch.optim.AdamW(clip.parameters(), lr=LR, weight_decay=0.05, fused=True)
    g, began = torch.Generator().manual_seed(SEED), time.time()
    target = torch.arange(BATCH)
    for step, (index, chosen) in zip(range(steps), pairs(seen, row, g), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        with torch.autocast("cpu", torch.bfloat16):
            logits = clip(input_ids=torch.stack([ids[t] for t in chosen]), pixel_values=crop(images[index], g)).logits_per_text.float()
        loss = (F.cross_entropy(logits, target, label_smoothing=0.05) + F.cross_entropy(logits.T, target, label_smoothing=0.05)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(50))
        if step % 100 == 0:
            hit = (logits.argmax(1) == target).float().mean()
            print(f"clip step {step} loss {loss.item():.3f} top1-of-{BATCH} {hit:.3f} seconds {time.time() - began:.0f}", flush=True)
    clip.eval()
    clip.save_pretrained(out / "clip")
    print(f"clip done: {float(np.round(clip.logit_scale.exp().item(), 2))} logit scale", flush=True)
