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
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Latents:
    """One picture: posterior mean and deviation [C, H, W] in the denoiser's units, and its crop [6]."""

    mean: Tensor
    deviation: Tensor
    crop: Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the CPU: x_0 and noise [B, C, H, W] fp32, u [B] uniform in [0, 1), a caption a slot, crops [B, 6], weights [B]."""

    x_0: Tensor
    noise: Tensor
    u: Tensor  # which timestep: the objective knows its density
    captions: list[str | None]  # None: what inference puts in the place of a caption
    crops: Tensor
    weights: Tensor


@dataclass
class Encoded:
    """Everything is looked up by sample, never by step or position."""

    samples: Sequence[Sample]
    latents: dict[str, Latents]

    def latent(self, sample: int, *key: keys.Key) -> Tensor:
        """A draw from the posterior of a picture, [C, H, W]."""
        drawn = self.latents[self.samples[sample].content]
        return drawn.mean + drawn.deviation * torch.randn(drawn.mean.shape, generator=keys.generator(*key))

    def crops(self, samples: Sequence[Sample]) -> Tensor:
        """[B, 6], see `decode.Crop`."""
        return torch.stack([self.latents[s.content].crop for s in samples])

    def batch(self, slots: Sequence[Slot], seed: int, step: int, caption_dropout: float) -> Batch:
        """Timestep, noise, posterior draw, choice and dropout of the caption are functions of (seed, step, slot)."""
        x_0 = torch.stack([self.latent(s.sample, seed, "vae", step, s.slot) for s in slots])
        noise = torch.stack([torch.randn(x_0.shape[1:], generator=keys.generator(seed, "noise", step, s.slot)) for s in slots])
        u = torch.tensor([keys.uniform(seed, "timestep", step, s.slot) for s in slots], dtype=torch.float64)
        samples = [self.samples[s.sample] for s in slots]
        captions = [s.captions[keys.number(seed, "caption", step, k.slot) % len(s.captions)] for s, k in zip(samples, slots, strict=True)]
        dropped = [keys.uniform(seed, "dropout", step, s.slot) < caption_dropout for s in slots]
        said = [None if d else c for c, d in zip(captions, dropped, strict=True)]
        return Batch(x_0, noise, u, said, self.crops(samples), torch.tensor([s.weight for s in slots], dtype=torch.float32))


def encode_pictures(
    family: "Family", samples: Sequence[Sample], side: int, background: str, cache: Cache, tick: Callable[[], None]
) -> dict[str, Latents]:
    """Every picture's latents, by content. One at a time: what is cached must not depend on its neighbours."""
    weights = family.source.fingerprint("vae")
    out = {}
    for sample in samples:
        key = Cache.key(image=sample.content, decoder=decode.VERSION, side=side, background=background, vae=weights)
        entry = cache.get(key)
        if entry is None:
            pixels, crop = decode.load(sample.path, sample.content, background, side)
            mean, deviation = family.encode(pixels[None])
            entry = {"mean": mean[0].cpu(), "deviation": deviation[0].cpu(), "crop": torch.tensor(crop)}
            cache.put(key, entry)
        out[sample.content] = Latents(**entry)
        tick()
    return out


@torch.no_grad()
def texts(family: "Family", captions: Sequence[str]) -> list[Text]:
    """What the base's own text encoders, loaded for it, make of captions; on the CPU."""
    nets = {part: family.parts.load(part) for part in family.spec.text}
    return [{k: v.cpu() for k, v in row.items()} for row in family.text(nets, captions)]


def encode_captions(family: "Family", captions: Sequence[str], cache: Cache, tick: Callable[[], None]) -> dict[str, Text]:
    """What the text encoder makes of every caption, the empty one included."""
    weights = family.source.fingerprint(*family.spec.text, *family.spec.tokenizers)
    out = {}
    for caption in sorted({*captions, ""}):
        key = Cache.key(caption=caption, window=family.window, text_encoder=weights, dtype=str(family.dtype))
        entry = cache.get(key)
        if entry is None:
            entry = texts(family, [caption])[0]
            cache.put(key, entry)
        out[caption] = entry
        tick()
    return out
