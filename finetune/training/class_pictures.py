"""Class pictures for prior preservation: drawn from the base itself before training, kept under what made them, and used again."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune import files
from finetune.config.job import Job
from finetune.data import folder
from finetune.data.cache import Cache, default_root
from finetune.data.encoded import texts
from finetune.data.folder import Found, Sample, Wording
from finetune.errors import ConfigError
from finetune.families.load import Family
from finetune.sampling import draw

Phase = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True)
class ClassPictures:
    """The class pictures of a job: a person's own, and as many of the base's as are missing."""

    job: Job
    family: Family
    side: int  # pixels

    @property
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
            "weights": family.source.fingerprint(*family.spec.parts),
            "dtype": str(family.dtype),
        }

    @property
    def key(self) -> str:
        return Cache.key(**self.facts)[:12]

    @property
    def folder(self) -> Path:
        own = self.job.subject.class_data
        return own.expanduser() if own else default_root() / "class-pictures" / self.key

    def path(self, number: int) -> Path:
        return self.folder / f"class-{self.key}-{number:06d}.png"

    def _drawn(self, name: str) -> int | None:
        """The number of a picture that the base drew by these facts, or None of any other."""
        found = re.fullmatch(rf"class-{self.key}-(\d{{6}})\.png", name)
        return int(found[1]) if found else None

    def count(self) -> int:
        """How many the base draws: what a person's own leave missing."""
        found = folder.paths(self.folder, Found([])) if self.folder.is_dir() else []
        own = sum(self._drawn(p.name) is None for p in found)
        count = max(0, self.job.subject.class_count - own)
        if not own and not count:
            raise ConfigError(f"--class-data {self.folder}: holds no pictures, and --class-count is 0", "give one of them")
        return count

    def ensure(self, rank: int, world: int, phase: Phase, poll: Callable[[], None]) -> None:
        """Draws this process's share of what is missing, in batches whose places do not depend on what is there."""
        size = self.job.subject.class_batch or draw.at_once(self.side)
        numbers = list(range(self.count()))
        batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        missing = [b for b in batches if not all(self.path(n).exists() for n in b)]
        if not missing:
            return
        files.check_writable(self.folder)
        mine = missing[rank::world]
        with phase(f'drawing class pictures: "{self.job.subject.class_word}"', sum(map(len, mine))) as tick:
            pipeline, pair = self._pipeline()
            for batch in mine:
                poll()
                self._draw(pipeline, pair, batch)
                for _ in batch:
                    tick()
        self.family.parts.free(*self.family.spec.parts)

    def _pipeline(self) -> tuple[Any, Any]:
        family = self.family
        prompt, empty = texts(family, [self.facts["prompt"], ""])
        family.parts.free(*family.spec.text)
        return family.pipeline(), (prompt, family.unconditional(empty))

    def _draw(self, pipeline: Any, pair: Any, batch: list[int]) -> None:
        facts = self.facts
        images = draw.draw(
            self.family, pipeline, [pair] * len(batch), batch, facts["steps"], facts["guidance"], self.side, len(batch)
        )  # fmt: skip
        for number, image in zip(batch, images, strict=True):
            if not self.path(number).exists():
                draw.save_png(image, self.path(number), {**facts, "seed": number})

    def samples(self, background: str) -> list[Sample]:
        """All of them, with the loss weight of the prior; a picture's own caption has the class word in front."""
        subject, count = self.job.subject, self.count()
        found = folder.scan(self.folder, Wording(trigger=subject.class_word), background).samples
        used = [s for s in found if (n := self._drawn(Path(s.name).name)) is None or n < count]
        return [replace(s, weight=subject.prior_weight) for s in used]
