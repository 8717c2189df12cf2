"""Samples as the family sees them: latents by picture and variant, hidden states by caption, and the batches drawn from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from finetune import randomness
from finetune.data import cache, decode
from finetune.data.cache import Cache
from finetune.data.crop import Augment, Crop, View, cut
from finetune.data.plan import Slot
from finetune.data.sample import Sample, Size
from finetune.errors import DataError

Text = dict[str, Tensor]
VERSION = 1  # part of every cache's place: raise it when the same pixels or captions would be cut or encoded otherwise
AT_ONCE, PIXELS = 8, 1024 * 1024  # pictures that the autoencoder takes at once, and their pixels, at most


@dataclass(frozen=True)
class Latents:
    """One picture: posterior mean and deviation [C, H, W] in the denoiser's units, its crop [6], and its mask [1, H, W] if it has one."""

    mean: Tensor
    deviation: Tensor
    crop: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Pictures of one size: x_0 and noise [B, C, H, W] fp32, u [B] uniform in [0, 1), a caption a slot, crops [B, 6], weights [B]."""

    x_0: Tensor
    noise: Tensor
    u: Tensor  # which timestep: the objective knows its density
    captions: list[str | None]  # None: what inference puts in the place of a caption
    crops: Tensor
    weights: Tensor
    masks: Tensor | None  # [B, 1, H, W] in [0, 1]
    slots: list[int]  # positions in the global batch


class Pixels(NamedTuple):
    """How pictures become pixels: part of what a latent depends on."""

    background: str = "white"
    augment: Augment = Augment()

    def key(self, sample: Sample, variant: int) -> bytes:
        """What the latents of a picture's variant are kept under."""
        view = self.augment.view(sample.content, variant)
        return cache.key(image=sample.content, size=sample.size, view=view, background=self.background, mask=sample.masked)


@dataclass
class Encoded:
    """Everything is looked up by sample, never by step or position."""

    samples: Sequence[Sample]
    latents: Cache
    pixels: Pixels = field(default_factory=Pixels)
    encode_again: "Callable[[Variant], None]" = lambda job: None  # what is damaged on the disk, before it is read again
    placed: dict[bytes, Text] = field(default_factory=dict)  # on the device, where all fit

    def __getitem__(self, sample: Sample) -> Latents:
        """The plain variant of a picture."""
        return self.look_up(sample, 0)

    def look_up(self, sample: Sample, variant: int) -> Latents:
        name = self.pixels.key(sample, variant)
        return Latents(**(self.placed.get(name) or self._row(name, sample, variant)))

    def _row(self, name: bytes, sample: Sample, variant: int) -> Text:
        try:
            return self.latents[name]
        except KeyError:  # it was there: it is damaged
            self.encode_again(Variant(name, sample, self.pixels.augment.view(sample.content, variant)))
            return self.latents[name]

    def batches(self, slots: Sequence[Slot], seed: int, step: int, caption_dropout: float) -> list[Batch]:
        """One batch for each size among the slots."""
        sizes: dict[Size, list[Slot]] = {}
        for slot in slots:
            sizes.setdefault(self.samples[slot.sample].size, []).append(slot)
        return [self.batch(rows, seed, step, caption_dropout) for rows in sizes.values()]

    def batch(self, slots: Sequence[Slot], seed: int, step: int, caption_dropout: float) -> Batch:
        """Timestep, noise, posterior draw, variant, choice and dropout of the caption are functions of (seed, step, slot)."""
        samples, count = [self.samples[s.sample] for s in slots], self.pixels.augment.count
        rows = [
            self.look_up(s, randomness.number(seed, "variant", step, k.slot) % count if count > 1 else 0)
            for s, k in zip(samples, slots, strict=True)
        ]
        x_0 = torch.stack([draw(row, seed, "vae", step, s.slot) for row, s in zip(rows, slots, strict=True)])
        noise = torch.stack([torch.randn(x_0.shape[1:], generator=randomness.generator(seed, "noise", step, s.slot)) for s in slots])
        u = torch.tensor([randomness.uniform(seed, "timestep", step, s.slot) for s in slots], dtype=torch.float64)
        captions = [
            s.captions[randomness.number(seed, "caption", step, k.slot) % len(s.captions)] for s, k in zip(samples, slots, strict=True)
        ]
        dropped = [randomness.uniform(seed, "dropout", step, s.slot) < caption_dropout for s in slots]
        said = [None if d else c for c, d in zip(captions, dropped, strict=True)]
        weights = torch.tensor([s.weight for s in slots], dtype=torch.float32)
        return Batch(x_0, noise, u, said, torch.stack([r.crop for r in rows]), weights, masks_of(rows), [k.slot for k in slots])

    def place(self, device: torch.device, room: int) -> bool:
        """Moves all latents to the device if they take no more than `room` bytes there; says whether it did."""
        every = {self.pixels.key(s, v): (s, v) for s in self.samples for v in range(self.pixels.augment.count)}
        there = {n: of for n, of in every.items() if n in self.latents}  # held-out pictures have but one variant
        if sum(map(self.latents.size, there)) > room:
            return False
        rows = {n: self._row(n, *of) for n, of in there.items()}
        self.placed = {n: {k: v if k == "crop" else v.to(device) for k, v in row.items()} for n, row in rows.items()}
        return True


def draw(row: Latents, *key: randomness.Key) -> Tensor:
    """A draw from the posterior of a picture, [C, H, W]; its noise is drawn on the CPU."""
    noise = torch.randn(row.mean.shape, generator=randomness.generator(*key))
    return row.mean + row.deviation * noise.to(row.mean.device)


def masks_of(rows: Sequence[Latents]) -> Tensor | None:
    """[B, 1, H, W], all of 1 where a picture has none; None where none has one."""
    if all(r.mask is None for r in rows):
        return None
    whole = torch.ones_like(rows[0].mean[:1])
    return torch.stack([whole if r.mask is None else r.mask for r in rows])


class Variant(NamedTuple):
    """A picture's variant that has to be encoded."""

    name: bytes
    sample: Sample
    view: View


def picture_jobs(samples: Sequence[Sample], pixels: Pixels, plain: Sequence[Sample] = ()) -> list[list[Variant]]:
    """Every variant of `samples` and the plain one of `plain`, once, in batches of one size that fit the autoencoder."""
    wanted = {}
    for sample, count in [*((s, pixels.augment.count) for s in samples), *((s, 1) for s in plain)]:
        for variant in range(count):
            name = pixels.key(sample, variant)
            wanted[name] = Variant(name, sample, pixels.augment.view(sample.content, variant))
    sizes: dict[tuple[Size, bool], list[Variant]] = {}
    for job in wanted.values():
        sizes.setdefault((job.sample.size, bool(job.sample.masked)), []).append(job)
    return [jobs[i : i + at_once(size)] for (size, _), jobs in sizes.items() for i in range(0, len(jobs), at_once(size))]


def at_once(size: Size) -> int:
    return max(1, min(AT_ONCE, PIXELS // (size.height * size.width)))


class Prepared(NamedTuple):
    """One variant of a picture as training sees it, and the mask of the whole picture, of any size."""

    image: Image
    crop: Crop
    mask: Image | None


def prepared(sample: Sample, view: View, background: str) -> Prepared:
    """Raises:
    DataError: the file's bytes are no longer those that were looked at, or cannot be decoded.
    """
    made = decode.decode(_verified(sample.read(), sample.content, sample.name), sample.name, background)
    if made.image.size != (sample.original.width, sample.original.height):  # its bucket would be that of other proportions
        there, said = f"{made.image.width}x{made.image.height}", sample.original
        raise DataError(f"{sample.name}: is {there} when decoded, and its header says {said}", "save it again, upright")
    image, crop = cut(made.image, sample.size, view)
    mask = made.alpha if sample.masked == "alpha" else None
    if sample.mask is not None:
        name = f"the mask of {sample.name}"
        mask = decode.decode(_verified(sample.mask(), sample.masked, name), name, "black").image.convert("L")
    return Prepared(image, crop, mask)


def _verified(data: bytes, content: str, name: str) -> bytes:
    if decode.content(data) != content:
        raise DataError(f"{name}: changed while the run was starting", "run the command again")
    return data


def caption_keys(captions: Sequence[str]) -> dict[str, bytes]:
    """Where each caption's encoding is kept, and the empty one's."""
    return {c: cache.key(caption=c) for c in sorted({*captions, ""})}
