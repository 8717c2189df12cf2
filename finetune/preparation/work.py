"""The third stage: what a job does with its base and its pictures, refused here if it cannot be done. Nothing is loaded for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from finetune import files
from finetune.config import optimizers
from finetune.config.job import Job
from finetune.data.sample import Listing, Pictures
from finetune.errors import ConfigError
from finetune.families import single_file
from finetune.families.family import Family
from finetune.header import tensors_file
from finetune.methods.adapter import Start
from finetune.methods.trainees import DENOISER, Counted, Trainees, trainees
from finetune.objectives.build import objective
from finetune.objectives.objective import Objective
from finetune.preparation import automatic
from finetune.preparation.data import side
from finetune.preparation.start import start
from finetune.results import export
from finetune.sampling import draw

RARE = 40_000  # place in CLIP's vocabulary, which is ordered by frequency, from which an entry is no common word; sks is 48,136


@dataclass(frozen=True)
class Work:
    """What is to be done: the job with what `auto` became, and what it asks of the base."""

    job: Job
    family: Family
    side: int  # of the training square, in pixels
    batch: int  # pictures a step, over all processes
    objective: Objective
    start: Mapping[str, Start] | None  # what an adapter goes on from
    trainees: Trainees
    groups: list[Counted]  # what will train, at which rates

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that batches must have besides latents: what the base reads, and what the objective does."""
        of_base = self.family.edition.reads if DENOISER in self.objective.networks else ()
        return (*of_base, *self.objective.columns)

    def hashes(self) -> dict[str, str]:
        """Of what it is done with besides pictures: the base's parts, and a file that it goes on from."""
        base, file = self.family.source, self.job.method.start
        hashes = {part: base.fingerprint(part) for part in base.spec.read_by(self.objective.networks)}
        return hashes if file is None else hashes | {"start": files.sha256(tensors_file(file))}

    def notes(self) -> list[str]:
        """What should be said before any of it is done."""
        return self.family.notes() + export.notes(self.trainees)


def planned(job: Job, family: Family, pictures: Pictures | None, batch: int, device: str) -> Work:
    """All that can be refused without a network: settings against the base and the captions. `pictures` may be unknown, `batch` is the
    global one, `device` the type of the one that it will run on.

    Raises:
        FinetuneError: a setting does not fit the base.
    """
    known = pictures or Pictures(Listing(), [], [])
    job = settled(job, known, family) if pictures else automatic.resolved(job, known, 0)  # without pictures, nothing is chosen of them
    optimizers.check_device_runs(job.optim.optimizer, device)
    check_drawing(job, family)
    check_subject(job, family, batch)
    add_tokens(job, family, pictures.captions if pictures else None)
    learns = objective(family.schedule().to(family.device), job.objective, job.trigger, job.method.kind)
    begins = start(job, family)
    trains = trainees(family, job, learns.networks, begins)
    export.check_formats(trains)
    groups = trains.count({place: family.parts.skeleton(folder) for place, folder in trains.places.items()})
    optimizers.check_rates(job.optim.optimizer, [group.lr for group in groups])
    return Work(job, family, side(job, family), batch, learns, begins, trains, groups)


def settled(job: Job, pictures: Pictures, family: Family) -> Job:
    """The job with what `auto` became; it asks for no pictures that its base cannot draw, or the written file could not be drawn with."""
    calls = draw.calls(family) if job.run.automatic and _drawable(job, family) else 0
    return automatic.resolved(job, pictures, calls)


def _drawable(job: Job, family: Family) -> bool:
    if job.run.format == "single" and single_file.undrawable(family.source):
        return False
    try:
        draw.check_side(family, side(job, family))
    except ConfigError:
        return False
    return True


def add_tokens(job: Job, family: Family, captions: Sequence[str] | None) -> None:
    """Teaches the family's words the job's new tokens. `captions` may be unknown.

    Raises:
        ConfigError: one is a word already or in no caption, or the text encoder's window ends before the vectors of a caption do.
    """
    m, room = job.method, family.room
    for token in m.new_tokens:
        if captions is not None and not any(token in caption for caption in captions):
            raise ConfigError(f"new token {token}: no caption says it, and it would learn nothing", "put it into captions, or leave it out")
        family.words.add(token, m.vectors)
    for caption in captions or ():
        last = max((caption.rfind(t) + len(t) for t in m.new_tokens if t in caption), default=0)
        if last and (count := family.tokens(caption[:last])) > room:
            raise ConfigError(
                f"--vectors {m.vectors}: the caption {caption[:60]!r} is {count} tokens long to the end of its new token, and "
                f"the text encoder of {family.source.id} reads {room}",
                "give fewer vectors, or shorter captions",
            )


def check_drawing(job: Job, family: Family) -> None:
    """Whether the pictures that the run draws can be drawn, said before it has cost anything.

    Raises:
        ConfigError: a side that the base's pipeline does not draw, or steps that its sampler does not take.
    """
    if job.run.sample_prompt or job.subject.prior:
        draw.check_side(family, side(job, family))
    if job.subject.prior and job.subject.class_steps:
        draw.check_steps(family, None, job.subject.class_steps, "subject.class_steps")


def check_subject(job: Job, family: Family, batch: int) -> None:
    """Raises:
    ConfigError: a token that the base knows as a word, or a batch that cannot hold as many class pictures as others.
    """
    s, part = job.subject, family.spec.text[0]
    known = family.words.known(part, s.token) if s.token else None
    if known is not None and known < RARE:
        raise ConfigError(
            f"--token {s.token}: is a word that {family.source.id} knows, and training would fight its meaning",
            "a rare one starts from nothing, such as sks or ohwx; `ft lora --trigger` takes any word",
        )
    if s.prior and batch % 2:
        raise ConfigError(
            f"--batch {job.optim.batch}: class pictures stand in equal number beside the others, so the pictures of a step must be even",
            "--batch 2, --accumulate 2, or --prior-weight 0",
        )


def report_long_captions(family: Family, captions: list[str], say: Callable[[str], None]) -> int:
    """Says which captions the text encoder will not read to their end; returns how many."""
    room = family.room
    long = [c for c in captions if family.tokens(c) > room]
    for c in long[:5]:
        say(f"  caption of {family.tokens(c)} tokens is cut to {room}: {c[:60]}")
    if len(long) > 5:
        say(f"  {len(long) - 5} more captions are cut")
    return len(long)
