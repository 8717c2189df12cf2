"""The phase before training: pictures to latents, captions to hidden states, by all processes together; then the encoders are freed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from finetune import randomness
from finetune.data import cache, decode, prune
from finetune.data.cache import Cache, Row
from finetune.data.crop import cut_mask, to_plane, to_tensor
from finetune.data.encoded import VERSION, Encoded, Pixels, Text, Variant, caption_keys, picture_jobs, pictures_at_once
from finetune.data.inputs import INPAINT_MASK, LOSS_MASK, MASKED, PIXELS
from finetune.data.sample import Pictures, Size
from finetune.errors import DataError
from finetune.families import inpainting
from finetune.families.family import Family
from finetune.preparation.data import pixels
from finetune.preparation.work import Work, report_long_captions

ROOM = 0.1  # latents go to the accelerator where they take no more than this part of its free memory
Phase = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


def _no_wait() -> None: ...


@dataclass(frozen=True)
class Crew:
    """Who does what: this process's place among all, what shows progress, and what raises when a signal came."""

    phase: Phase
    say: Callable[[str], None]
    poll: Callable[[], None] = _no_wait
    rank: int = 0
    world: int = 1
    wait: Callable[[], None] = _no_wait  # for all processes
    note: Path | None = None  # what the cache notes as the user of its entries, if not the run's folder

    def share(self, count: int) -> slice:
        """One of `world` equal parts, in one piece, so that shards are as few as may be."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)


def encode(work: Work, pictures: Pictures, crew: Crew) -> tuple[Encoded, dict[str, Text]]:
    """Latents of all pictures; and what the text encoders make of captions and prompts, unless they are to stay live."""
    job, family = work.job, work.family
    reads = "text" in work.objective.networks
    asked = {*pictures.captions, *job.run.sample_prompt} if reads else set()
    for caption in pictures.captions:
        asked.update(work.objective.captions(caption))
    captions = sorted(asked)
    report_long_captions(family, captions, crew.say)
    shown = pixels(job, work.reads)
    jobs = picture_jobs([*pictures.train, *pictures.classes], shown, pictures.held)
    store, names = latents_of(family), caption_keys(captions) if reads and not work.trainees.live else {}
    if crew.rank == 0:
        used: dict[Path, Iterable[bytes]] = {store.root: [variant.name for variant in chain.from_iterable(jobs)]}
        if names:
            used[texts_of(family).root] = names.values()
        prune.note_use(crew.note or job.run.folder, used)
    _latents(family, jobs, shown, store, crew)
    encoded = Encoded(pictures.all, store, shown, lambda job: _again(family, job, shown, store))
    if family.device.type == "cuda":
        encoded.place(family.device, int(torch.cuda.mem_get_info(family.device)[0] * ROOM))
    return encoded, _texts(family, names, crew) if names else {}


def _again(family: Family, job: Variant, shown: Pixels, store: Cache) -> None:
    """Encodes a picture whose latents were damaged since they were looked for, as it was before."""
    with randomness.global_rng("encode again"):
        encode_pictures(family, [[job]], shown, store, lambda count: None)
    family.parts.free("vae")


def _latents(family: Family, jobs: list[list[Variant]], shown: Pixels, store: Cache, crew: Crew) -> None:
    mine = jobs[crew.share(len(jobs))]
    with crew.phase("encoding pictures", sum(map(len, mine))) as tick:

        def done(count: int) -> None:
            for _ in range(count):
                tick()
            crew.poll()

        try:
            encode_pictures(family, mine, shown, store, done)
        except DataError as e:
            e.shared = False  # the other processes have other pictures, and do not know
            raise
    crew.wait()
    store.refresh()  # what the others encoded
    family.parts.free("vae")


def _texts(family: Family, names: dict[str, bytes], crew: Crew) -> dict[str, Text]:
    store = texts_of(family)
    mine = list(names)[crew.share(len(names))]
    with crew.phase("encoding captions", len(mine)) as tick:

        def done() -> None:
            tick()
            crew.poll()

        encode_captions(family, {c: names[c] for c in mine}, store, done)
    crew.wait()
    store.refresh()
    family.parts.free(*family.spec.text)
    return {caption: store[name] for caption, name in names.items()}


def latents_of(family: Family) -> Cache:
    """The cache of what this family's autoencoder makes."""
    return Cache(cache.space("latents", vae=family.source.fingerprint("vae"), decoder=decode.VERSION, encoder=VERSION))


def encode_pictures(family: Family, jobs: Sequence[Sequence[Variant]], shown: Pixels, store: Cache, tick: Callable[[int], None]) -> None:
    """Encodes what `store` lacks and keeps it, even if `tick` raises, which is called with the number of pictures done."""
    try:
        with ThreadPoolExecutor() as pool:
            for batch in jobs:
                missing = [job for job in batch if job.name not in store]
                for row, job in zip(_encode(family, missing, shown, pool), missing, strict=True):
                    store.put(job.name, row)
                tick(len(batch))
    finally:
        store.flush()


def _encode(family: Family, jobs: Sequence[Variant], shown: Pixels, pool: ThreadPoolExecutor) -> list[Row]:
    """The rows of pictures of one size."""
    if not jobs:
        return []
    pictures = list(pool.map(lambda job: shown.prepared(job.sample, job.number), jobs))
    pixels = torch.stack([to_tensor(p.image) for p in pictures])
    rows = [{"crop": torch.tensor(picture.crop)} for picture in pictures]
    _add_latents(family, "x_0", pixels, jobs, rows)
    grid = Size(*rows[0]["x_0.mean"].shape[-2:])
    for job, picture, row in zip(jobs, pictures, rows, strict=True):
        if picture.loss_mask is not None:
            row[LOSS_MASK] = _loss_mask(job, picture.loss_mask, grid, shown)
    if PIXELS in shown.reads:
        for picture, row in zip(pictures, rows, strict=True):
            row[PIXELS] = torch.from_numpy(np.array(picture.image)).permute(2, 0, 1).contiguous()
    if INPAINT_MASK in shown.reads:
        repainted = torch.stack([to_plane(p.inpaint_mask) for p in pictures if p.inpaint_mask is not None])
        _add_latents(family, MASKED, inpainting.without(pixels, repainted), jobs, rows)
        for row, mask in zip(rows, inpainting.on_grid(repainted, *grid), strict=True):
            row[INPAINT_MASK] = mask.byte()
    return rows


def _add_latents(family: Family, name: str, pixels: Tensor, jobs: Sequence[Variant], rows: Sequence[Row]) -> None:
    """What the autoencoder makes of pictures [B, 3, H, W]. As many are always encoded at once, so that a row does not depend on its
    neighbours."""
    padded = torch.cat([pixels, pixels[-1:].expand(pictures_at_once(jobs[0].sample.size) - len(jobs), *pixels.shape[1:])])
    mean, deviation = (t[: len(jobs)].cpu() for t in family.encode(padded))
    for job, row, m, d in zip(jobs, rows, mean, deviation, strict=True):
        if not (m.isfinite().all() and d.isfinite().all()):
            raise DataError(f"{job.sample.name}: the autoencoder of {family.source.id} makes no finite numbers of it", "remove the picture")
        row |= {f"{name}.mean": m, f"{name}.deviation": d}


def _loss_mask(job: Variant, mask: Image, grid: Size, shown: Pixels) -> Tensor:
    column = cut_mask(mask, job.sample.size, grid, shown.view(job.sample, job.number))
    if not column.any():
        raise DataError(f"the mask of {job.sample.name}: nothing of the part that is trained on is white", "correct or remove the mask")
    return column


def texts_of(family: Family) -> Cache:
    """The cache of what this family's text encoders make."""
    weights = family.source.fingerprint(*family.spec.text, *family.spec.tokenizers)
    return Cache(cache.space("texts", window=family.window, text_encoder=weights, dtype=str(family.dtype), encoder=VERSION))


def encode_captions(family: Family, names: Mapping[str, bytes], store: Cache, tick: Callable[[], None]) -> None:
    """Encodes what `store` lacks; one caption at a time, as what is kept must not depend on its neighbours."""
    try:
        for caption, name in names.items():
            if not store.sound(name):
                row = family.texts([caption])[0]
                if not all(t.isfinite().all() for t in row.values()):
                    raise DataError(f"the text encoder of {family.source.id} makes no finite numbers of {caption[:60]!r}")
                store.put(name, row)
            tick()
    finally:
        store.flush()
