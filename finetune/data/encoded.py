"""Samples as the family sees them: latents by picture and variant, hidden states by caption, and the batches drawn from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from finetune.data import cache, decode, masks
from finetune.data.batch import Batch, columns
from finetune.data.cache import Cache, Row
from finetune.data.crop import Augment, Crop, View, cut, cut_plane
from finetune.data.index_plan import Slot
from finetune.data.inputs import INPAINT_MASK, LOSS_MASK, PICTURE, Input
from finetune.data.sample import Sample, Size
from finetune.draws import StepDraws
from finetune.errors import DataError

Text = dict[str, Tensor]
VERSION = 2  # part of every cache's place: raise it when the same pixels or captions would be cut or encoded otherwise
AT_ONCE, PIXELS = 8, 1024 * 1024  # pictures that the autoencoder takes at once, and their pixels, at most


class Prepared(NamedTuple):
    """One variant of a picture as training sees it."""

    image: Image
    crop: Crop
    loss_mask: Image | None  # of the whole picture, of any size
    inpaint_mask: Image | None  # of the image's size, mode L: 0 or 255


class Pixels(NamedTuple):
    """How pictures become pixels: part of what a latent depends on."""

    background: str = "white"
    augment: Augment = Augment()
    reads: tuple[str, ...] = ()  # what rows hold besides latents, crop and loss mask, by the names of columns
    own_masks: bool = False  # whether a picture with an inpainting mask of its own is shown with that alone

    def view(self, sample: Sample, variant: int) -> View:
        return self.augment.view(sample.content, variant)

    def key(self, sample: Sample, variant: int) -> bytes:
        """What the latents of a picture's variant are kept under."""
        more: dict[str, object] = {"reads": self.reads} if self.reads else {}  # so that what was kept before it is still known
        if INPAINT_MASK in self.reads:
            more["inpaint"] = self._drawn_mask(sample, variant)
        view = self.view(sample, variant)
        return cache.key(inputs=sample.contents, size=sample.size, view=view, background=self.background, **more)

    def _drawn_mask(self, sample: Sample, variant: int) -> int | None:
        """The number of the mask that is drawn for a variant; none where the picture's own is taken, as every other time."""
        own = INPAINT_MASK in sample.inputs and (self.own_masks or self.augment.numbered(variant)[0] % 2 == 0)
        return None if own else variant

    def prepared(self, sample: Sample, variant: int = 0) -> Prepared:
        """Raises:
        DataError: the file's bytes are no longer those that were looked at, or cannot be decoded; or its mask repaints nothing.
        """
        decoded = decode.decode_picture(_bytes(sample.inputs[PICTURE], sample.name), sample.name, self.background)
        if decoded.image.size != (sample.original.width, sample.original.height):  # its bucket would be that of other proportions
            there, expected = f"{decoded.image.width}x{decoded.image.height}", sample.original
            raise DataError(f"{sample.name}: is {there} when decoded, and its header says {expected}", "save it again, upright")
        image, crop = cut(decoded.image, sample.size, self.view(sample, variant))
        mask, masked = None, sample.inputs.get(LOSS_MASK)
        if masked is not None:
            mask = decoded.alpha if masked.read is None else _grey(masked, f"the mask of {sample.name}")
        return Prepared(image, crop, mask, self.inpaint_mask(sample, variant))

    def inpaint_mask(self, sample: Sample, variant: int) -> Image | None:
        """What of a variant is to be repainted, of a base that does so. Raises as `prepared`."""
        if INPAINT_MASK not in self.reads:
            return None
        if (number := self._drawn_mask(sample, variant)) is not None:
            return masks.drawn_mask(sample.content, number, sample.size)
        whole = _grey(sample.inputs[INPAINT_MASK], f"the inpainting mask of {sample.name}")
        mask = cut_plane(whole, sample.size, sample.size, self.view(sample, variant)).point(masks.BINARY)
        if not masks.white_share(mask):
            raise DataError(
                f"the inpainting mask of {sample.name}: nothing of the part that is trained on is white", "correct or remove the mask"
            )
        return mask


@dataclass
class Encoded:
    """Everything is looked up by sample, never by step or position."""

    samples: Sequence[Sample]
    latents: Cache
    pixels: Pixels = field(default_factory=Pixels)
    encode_again: "Callable[[Variant], None]" = lambda job: None  # what is damaged on the disk, before it is read again
    placed: dict[bytes, Row] = field(default_factory=dict)  # on the device, where all fit

    def row(self, sample: Sample, variant: int = 0) -> Row:
        """What is kept of a variant of a picture; the first is the plain one."""
        name = self.pixels.key(sample, variant)
        return self.placed.get(name) or self._row(name, sample, variant)

    def _row(self, name: bytes, sample: Sample, variant: int) -> Row:
        try:
            return self.latents[name]
        except KeyError:  # it was there: it is damaged
            self.encode_again(Variant(name, sample, variant))
            return self.latents[name]

    def batches(self, slots: Sequence[Slot], draws: Callable[[Sequence[int]], StepDraws], caption_dropout: float) -> list[Batch]:
        """One batch for each size among the slots; `draws` are those of slots by their numbers."""
        sizes: dict[Size, list[Slot]] = {}
        for slot in slots:
            sizes.setdefault(self.samples[slot.sample].size, []).append(slot)
        return [self.batch(same, draws([slot.slot for slot in same]), caption_dropout) for same in sizes.values()]

    def batch(self, slots: Sequence[Slot], draws: StepDraws, caption_dropout: float) -> Batch:
        """Posterior draw, variant, choice and dropout of the caption are functions of (seed, step, slot)."""
        samples, count = [self.samples[slot.sample] for slot in slots], self.pixels.augment.count
        rows, captions = [], []
        dropout: list[float] = draws.uniform("dropout").tolist()
        for i, sample in enumerate(samples):
            rows.append(self.row(sample, draws.number("variant", i) % count if count > 1 else 0))
            caption = sample.captions[draws.number("caption", i) % len(sample.captions)]
            captions.append(None if dropout[i] < caption_dropout else caption)
        weights = torch.tensor([slot.weight for slot in slots], dtype=torch.float32)
        return Batch(columns(rows, draws), captions, weights, draws.slots)

    def plain(self, samples: Sequence[Sample]) -> Batch:
        """Pictures of one size with nothing drawn, for measuring."""
        columns_ = columns([self.row(sample) for sample in samples])
        return Batch(columns_, [sample.caption for sample in samples], torch.ones(len(samples)), range(len(samples)))

    def place(self, device: torch.device, room: int) -> bool:
        """Moves all latents to the device if they take no more than `room` bytes there; says whether it did."""
        there: dict[bytes, tuple[Sample, int]] = {}
        for sample in self.samples:
            for variant in range(self.pixels.augment.count):
                name = self.pixels.key(sample, variant)
                if name in self.latents:  # held-out pictures have but one variant
                    there[name] = sample, variant
        if sum(map(self.latents.size, there)) > room:
            return False
        rows = {name: self._row(name, *of) for name, of in there.items()}
        self.placed = {name: {column: tensor.to(device) for column, tensor in row.items()} for name, row in rows.items()}
        return True


class Variant(NamedTuple):
    """A picture's variant that has to be encoded."""

    name: bytes
    sample: Sample
    number: int


def picture_jobs(samples: Sequence[Sample], pixels: Pixels, plain: Sequence[Sample] = ()) -> list[list[Variant]]:
    """Every variant of `samples` and the plain one of `plain`, once, in batches of one size that fit the autoencoder."""
    wanted = {}
    for sample, count in [*((s, pixels.augment.count) for s in samples), *((s, 1) for s in plain)]:
        for variant in range(count):
            name = pixels.key(sample, variant)
            wanted[name] = Variant(name, sample, variant)
    sizes: dict[tuple[Size, bool], list[Variant]] = {}
    for job in wanted.values():
        sizes.setdefault((job.sample.size, LOSS_MASK in job.sample.inputs), []).append(job)
    out = []
    for (size, _), jobs in sizes.items():
        count = pictures_at_once(size)
        out += [jobs[i : i + count] for i in range(0, len(jobs), count)]
    return out


def pictures_at_once(size: Size) -> int:
    return max(1, min(AT_ONCE, PIXELS // (size.height * size.width)))


def _grey(file: Input, name: str) -> Image:
    return decode.decode_picture(_bytes(file, name), name, "black").image.convert("L")


def _bytes(file: Input, name: str) -> bytes:
    assert file.read is not None  # noqa: S101  a part of another is not read
    data = file.read()
    if decode.content(data) != file.content:
        raise DataError(f"{name}: changed while the run was starting", "run the command again")
    return data


def caption_keys(captions: Sequence[str]) -> dict[str, bytes]:
    """Where each caption's encoding is kept, and the empty one's."""
    return {c: cache.key(caption=c) for c in sorted({*captions, ""})}
