"""Class pictures for prior preservation: drawn from the base itself before training, kept under what made them, and used again."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune import files
from finetune.config.job import Job
from finetune.data import cache, folder, scan
from finetune.data.captions import Wording
from finetune.data.decode import EXTENSIONS
from finetune.data.encoded import Text
from finetune.data.sample import Listing, Sample
from finetune.data.scan import Origin
from finetune.errors import ConfigError
from finetune.families import load
from finetune.families.family import Family
from finetune.preparation.encoding import Crew
from finetune.preparation.work import Work
from finetune.results.stored import CLASSES, DRAWN
from finetune.sampling import draw
from finetune.sampling.pipeline import Pipeline


@dataclass(frozen=True)
class ClassPictures:
    """The class pictures of a job: a person's own, and as many of the base's as are missing."""

    job: Job
    family: Family
    side: int  # pixels

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What makes a picture, but for its seed, which is its number."""
        s, family = self.job.subject, self.family
        steps, guidance = family.inference()
        return {
            "prompt": s.class_word,
            "steps": s.class_steps or steps,
            "guidance": guidance if s.class_guidance is None else s.class_guidance,
            "scheduler": family.spec.sampler,
            "side": self.side,
            "base": family.source.id,
            "weights": family.source.fingerprint(*family.spec.folders),
            "dtype": str(family.dtype),
        }

    @cached_property
    def key(self) -> str:
        return cache.key(**self.facts).hex()[:12]

    @cached_property
    def folder(self) -> Path:
        given = self.job.subject.class_data
        return files.home(given) if given else files.cache_root() / CLASSES / self.key

    def path(self, number: int) -> Path:
        return self.folder / f"class-{self.key}-{number:06d}.png"

    @cached_property
    def given(self) -> Listing:
        """A person's pictures in the folder: all that no base drew, for this job or for another."""
        there = list(folder.walk(self.folder, Listing())) if self.folder.is_dir() else []
        if not any(_is_persons(name) and Path(name).suffix.lower() in EXTENSIONS for name in there):
            return Listing()
        pictures = scan.scan(replace(self._origin, skip=lambda name: not _is_persons(name)))
        pictures.refuse()
        return pictures

    @property
    def _origin(self) -> Origin:
        return Origin(str(self.folder), Wording(trigger=self.job.subject.class_word), self.job.data.background, drawn=True)

    @cached_property
    def count(self) -> int:
        """How many the base draws: what a person's own leave missing.

        Raises:
            ConfigError: there would be none at all.
        """
        count = max(0, self.job.subject.class_count - len(self.given.samples))
        if not self.given.samples and not count:
            raise ConfigError(f"--class-data {self.folder}: holds no pictures, and --class-count is 0", "give one of them")
        return count

    def ensure(self, crew: Crew) -> None:
        """Draws this process's share of what is missing, in batches whose places do not depend on what is there."""
        size = self.job.subject.class_batch or draw.at_once(self.side)
        numbers = list(range(self.count))
        batches = [numbers[i : i + size] for i in range(0, len(numbers), size)][crew.rank :: crew.world]
        mine = [b for b in batches if not all(self.path(n).exists() for n in b)]
        if not self.job.subject.class_data:
            files.touch(self.folder)
        if not mine:
            return
        files.check_writable(self.folder)
        with crew.phase(f'drawing class pictures: "{self.job.subject.class_word}"', sum(map(len, mine))) as tick:
            pipeline, pair = self._pipeline()
            for batch in mine:
                crew.poll()
                self._draw(pipeline, pair, batch)
                for _ in batch:
                    tick()
        self.family.parts.free(*self.family.spec.parts)

    def _pipeline(self) -> tuple[Pipeline, tuple[Text, Text]]:
        family = self.family
        prompt, empty = family.texts([self.facts["prompt"], ""])
        family.parts.free(*family.spec.text)
        return family.pipeline(), (prompt, family.unconditional(empty))

    def _draw(self, pipeline: Pipeline, pair: tuple[Text, Text], batch: list[int]) -> None:
        facts, pairs = self.facts, [pair] * len(batch)
        images = draw.draw(self.family, pipeline, pairs, batch, facts["steps"], facts["guidance"], self.side, len(batch))
        for number, image in zip(batch, images, strict=True):
            if not self.path(number).exists():
                draw.save_png(image, self.path(number), {**facts, "seed": number})

    def samples(self) -> list[Sample]:
        """All of them, with the loss weight of the prior; a person's own captions have the class word in front."""
        drawn = scan.scan(self._origin, [scan.file_item(self.path(n)) for n in range(self.count)]) if self.count else Listing()
        drawn.refuse()
        return [replace(s, weight=self.job.subject.prior_weight) for s in (*self.given.samples, *drawn.samples)]


def class_pictures(work: Work, crew: Crew) -> list[Sample]:
    """Those that prior preservation asks for; the missing ones are drawn."""
    if not work.job.subject.prior:
        return []
    family = work.family
    if family.source.zero_snr:  # the base draws by its own schedule
        family = load.family(replace(family.source, zero_snr=False), family.device, family.dtype)
    pictures = ClassPictures(work.job, family, work.side)
    pictures.ensure(crew)
    crew.wait()
    samples = pictures.samples()
    crew.say(f"class pictures: {len(samples)} in {pictures.folder}")
    pictures.given.describe(crew.say)
    return samples


def _is_persons(name: str) -> bool:
    """Whether a file is a person's, and not drawn by a base, for this job or for another."""
    return not DRAWN.fullmatch(Path(name).name)
