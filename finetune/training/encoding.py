"""The phase before training: pictures to latents, captions to hidden states, by all processes together; then the encoders are freed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.config.job import Job
from finetune.data import encoded, keys, prune
from finetune.data.cache import Cache
from finetune.data.encoded import Encoded, Text, caption_keys
from finetune.data.sample import Pictures
from finetune.errors import DataError
from finetune.families.load import Family
from finetune.training.requirements import pixels, report_long_captions

ROOM = 0.1  # latents go to the accelerator where they take no more than this part of its free memory
Phase = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


def _no_wait() -> None: ...


@dataclass(frozen=True)
class Work:
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


def encode(job: Job, family: Family, pictures: Pictures, prompts: Sequence[str], work: Work) -> tuple[Encoded, dict[str, Text]]:
    """Latents of all pictures; and what the text encoders make of captions and prompts, unless they are to stay live."""
    captions = sorted({*pictures.captions, *map(job.preserved, pictures.captions), *prompts})
    report_long_captions(family, captions, work.say)
    shown = pixels(job)
    jobs = encoded.picture_jobs([*pictures.train, *pictures.classes], shown, pictures.held)
    store, names = encoded.latents_of(family), {} if job.method.live else caption_keys(captions)
    if work.rank == 0:
        used = {store.root: [j.name for batch in jobs for j in batch]}
        prune.remember(work.note or job.run.folder, used | ({encoded.texts_of(family).root: names.values()} if names else {}))
    _latents(family, jobs, shown.background, store, work)
    made = Encoded(pictures.all, store, shown, lambda job: _again(family, job, shown.background, store))
    if family.device.type == "cuda":
        made.place(family.device, int(torch.cuda.mem_get_info(family.device)[0] * ROOM))
    return made, _texts(family, names, work) if names else {}


def _again(family: Family, job: encoded.Job, background: str, store: Cache) -> None:
    """Encodes a picture whose latents were damaged since they were looked for, as it was before."""
    with keys.global_rng("encode again"):
        encoded.encode_pictures(family, [[job]], background, store, lambda count: None)
    family.parts.free("vae")


def _latents(family: Family, jobs: list[list[encoded.Job]], background: str, store: Cache, work: Work) -> None:
    mine = jobs[work.share(len(jobs))]
    with work.phase("encoding pictures", sum(map(len, mine))) as tick:

        def done(count: int) -> None:
            for _ in range(count):
                tick()
            work.poll()

        try:
            encoded.encode_pictures(family, mine, background, store, done)
        except DataError as e:
            e.shared = False  # the other processes have other pictures, and do not know
            raise
    work.wait()
    store.refresh()  # what the others encoded
    family.parts.free("vae")


def _texts(family: Family, names: dict[str, bytes], work: Work) -> dict[str, Text]:
    store = encoded.texts_of(family)
    mine = list(names)[work.share(len(names))]
    with work.phase("encoding captions", len(mine)) as tick:

        def done() -> None:
            tick()
            work.poll()

        encoded.encode_captions(family, {c: names[c] for c in mine}, store, done)
    work.wait()
    store.refresh()
    family.parts.free(*family.spec.text)
    return {caption: store[name] for caption, name in names.items()}
