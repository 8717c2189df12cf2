"""Samples as the family sees them: latents by picture, hidden states by caption, and the batches drawn from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finetune.data import decode, keys
from finetune.data.cache import Cache
from finetune.data.folder import Sample
from finetune.data.plan import Slot

if TYPE_CHECKING:
    from finetune.families.load import Family

Text = dict[str, Tensor]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Without a wait: on CUDA the copy is asynchronous, which takes pinned memory."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the CPU: x_0 and noise [B, C, H, W] fp32, t [B] int64, a text a slot, weights [B]."""

    x_0: Tensor
    noise: Tensor
    t: Tensor
    texts: list[Text]
    weights: Tensor


@dataclass
class Encoded:
    """Everything is looked up by sample and by caption, never by step or position."""

    samples: Sequence[Sample]
    latents: dict[str, tuple[Tensor, Tensor]]  # content -> posterior mean, deviation
    texts: dict[str, Text]
    unconditional: Text

    def latent(self, sample: int, *key: keys.Key) -> Tensor:
        """A draw from the posterior of a picture, [C, H, W]."""
        mean, deviation = self.latents[self.samples[sample].content]
        return mean + deviation * torch.randn(mean.shape, generator=keys.generator(*key))

    def batch(self, slots: Sequence[Slot], seed: int, step: int, timesteps: int, caption_dropout: float) -> Batch:
        """Timestep, noise, posterior draw and caption dropout are functions of (seed, step, slot)."""
        x_0 = torch.stack([self.latent(s.sample, seed, "vae", step, s.slot) for s in slots])
        noise = torch.stack([torch.randn(x_0.shape[1:], generator=keys.generator(seed, "noise", step, s.slot)) for s in slots])
        t = torch.tensor([keys.number(seed, "timestep", step, s.slot) % timesteps for s in slots])
        dropped = [keys.uniform(seed, "dropout", step, s.slot) < caption_dropout for s in slots]
        texts = [self.unconditional if d else self.texts[self.samples[s.sample].caption] for s, d in zip(slots, dropped, strict=True)]
        return Batch(x_0, noise, t, texts, torch.tensor([s.weight for s in slots], dtype=torch.float32))


def encode_pictures(
    family: "Family", samples: Sequence[Sample], side: int, background: str, cache: Cache, tick: Callable[[], None]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Posterior mean and deviation of every picture. One at a time: what is cached must not depend on its neighbours."""
    weights = family.fingerprint("vae")
    out = {}
    for sample in samples:
        key = Cache.key(image=sample.content, decoder=decode.VERSION, side=side, background=background, vae=weights)
        entry = cache.get(key)
        if entry is None:
            mean, deviation = family.encode(decode.load(sample.path, sample.content, background, side)[None])
            entry = {"mean": mean[0].cpu(), "deviation": deviation[0].cpu()}
            cache.put(key, entry)
        out[sample.content] = (entry["mean"], entry["deviation"])
        tick()
    return out


def encode_captions(family: "Family", captions: Sequence[str], cache: Cache, tick: Callable[[], None]) -> dict[str, Text]:
    """What the text encoder makes of every caption, the empty one included."""
    weights = family.fingerprint("text_encoder")
    out = {}
    for caption in sorted({*captions, ""}):
        key = Cache.key(caption=caption, window=family.window, text_encoder=weights)
        entry = cache.get(key)
        if entry is None:
            entry = {k: v.cpu() for k, v in family.text([caption])[0].items()}
            cache.put(key, entry)
        out[caption] = entry
        tick()
    return out
