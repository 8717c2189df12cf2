"""What a job asks of its pictures and of its base, before anything is trained: read, checked, said."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from finetune.config.job import Job
from finetune.data import scan
from finetune.data.buckets import Buckets, largest_step
from finetune.data.captions import Wording
from finetune.data.crop import Augment
from finetune.data.encoded import Pixels
from finetune.data.sample import Pictures
from finetune.data.scan import Origin
from finetune.data.tables import Columns
from finetune.data.templates import TEMPLATES
from finetune.errors import ConfigError
from finetune.families import single_file, source
from finetune.families.family import Family
from finetune.families.source import Source
from finetune.preparation import automatic
from finetune.sampling import draw

RARE = 40_000  # place in CLIP's vocabulary, which is ordered by frequency, from which an entry is no common word; sks is 48,136


def base(job: Job, name: str | None = None, weights: bool = True) -> Source:
    """Where the job's base lies, or another by `name`; it may be downloaded or unpacked for that."""
    m = job.model
    where = source.resolve(name or m.base, m.variant, weights=weights, prediction=m.prediction_type, allow_pickle=m.allow_pickle)
    return replace(where, zero_snr=job.objective.zero_terminal_snr)


def pictures(job: Job) -> Pictures:
    """The job's own pictures; class pictures need its base, and so do buckets."""
    return scan.load(origins(job), job.data.holdout, held_as(job))


def settled(job: Job, pictures: Pictures, family: Family) -> Job:
    """The job with what `auto` became; it asks for no pictures that its base cannot draw, or the written file could not be drawn with."""
    calls = draw.calls(family) if job.run.automatic and _drawable(job, family) else 0
    return automatic.resolved(job, pictures, calls)


def _drawable(job: Job, family: Family) -> bool:
    if job.run.format == "single" and not (family.spec.single_file and not single_file.unknown_width(family.source)):
        return False
    try:
        draw.check_side(family, side(job, family))
    except ConfigError:
        return False
    return True


def held_as(job: Job) -> Origin:
    """How a --holdout folder is read: as `data` says, whatever single sources say of themselves."""
    d = job.data
    return origins(job.model_copy(update={"data": d.model_copy(update={"path": d.path or ".", "sources": ()})}))[0]


def origins(job: Job) -> list[Origin]:
    """Where the job's pictures come from and how they are taken."""
    d = job.data
    wording = Wording(
        trigger=job.trigger, templates=TEMPLATES[d.template if job.method.new_tokens else "none"], tokens=job.method.new_tokens,
        shuffle=d.shuffle_tags, keep=d.keep_tags, drop=d.tag_dropout, wildcards=d.wildcards, variants=d.caption_variants,
        seed=job.run.seed,
    )  # fmt: skip
    return [
        Origin(
            s.path, replace(wording, caption=s.caption, prefix=s.prefix or "", suffix=s.suffix or ""), d.background, s.mask or "none",
            Columns(s.image_column, s.caption_column), s.split, d.caption_lines == "each", s.repeats, s.weight,
        )
        for s in d.places
    ]  # fmt: skip


def pixels(job: Job) -> Pixels:
    """How the job's pictures become pixels."""
    d = job.data
    return Pixels(d.background, Augment(d.flip, d.random_crop, d.colour_jitter, d.variants))


def buckets(job: Job, family: Family) -> Buckets:
    """The sizes that the job's pictures are cut to.

    Raises:
        ConfigError: the base's autoencoder cannot make them.
    """
    d, first, multiple = job.data, side(job, family), family.factor
    sides = (first, *(_multiple("data.resolutions", r, multiple) for r in d.resolutions if r != first))
    if d.bucket_min and d.bucket_min > min(sides):
        raise ConfigError(f"data.bucket_min {d.bucket_min}: leaves out the square of {min(sides)} pixels")
    if d.bucket_max and d.bucket_max < max(sides):
        raise ConfigError(f"data.bucket_max {d.bucket_max}: leaves out the square of {max(sides)} pixels")
    step = _multiple("data.bucket_step", d.bucket_step or largest_step(min(sides), multiple), multiple)
    return Buckets(sides, step, d.bucket_min or min(sides) // 2, d.bucket_max or max(sides) * 2, not d.buckets, d.bucket_merge, d.enlarge)


def shown(job: Job, batch: int) -> int:
    """How many of a global batch's pictures are the job's own; class pictures are the other half."""
    return max(1, batch // 2) if job.subject.prior else batch


def planned(job: Job) -> int:
    """The global batch of the processes that the job itself starts."""
    return job.optim.batch * job.optim.accumulate * (job.run.processes or 1)


def cut(pictures: Pictures, made: Buckets, batch: int) -> None:
    """Gives every picture the size that it is cut to: those to train on one at each resolution, the held-out ones at the first."""
    pictures.train = made.assign(pictures.train, batch=batch)
    pictures.classes = made.assign(pictures.classes, made.sides[:1])  # they were drawn at that resolution
    pictures.held = made.assign(pictures.held, made.sides[:1])


def add_tokens(job: Job, family: Family, captions: Sequence[str]) -> None:
    """Teaches the family's words the job's new tokens.

    Raises:
        ConfigError: one is a word already or in no caption, or the text encoder's window ends before the vectors of a caption do.
    """
    m, room = job.method, family.window - 2
    for token in m.new_tokens:
        if not any(token in caption for caption in captions):
            raise ConfigError(f"new token {token}: no caption says it, and it would learn nothing", "put it into captions, or leave it out")
        family.words.add(token, m.vectors)
    for caption in captions:
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


def side(job: Job, family: Family) -> int:
    """The side of the training square in pixels.

    Raises:
        ConfigError: the base's autoencoder cannot make it.
    """
    return _multiple("--resolution", job.data.resolution or family.resolution, family.factor)


def _multiple(name: str, chosen: int, multiple: int) -> int:
    if chosen % multiple:
        raise ConfigError(f"{name} {chosen}: must be a multiple of {multiple} for this base")
    return chosen


def report_long_captions(family: Family, captions: list[str], say: Callable[[str], None]) -> int:
    """Says which captions the text encoder will not read to their end; returns how many."""
    room = family.window - 2
    long = [c for c in captions if family.tokens(c) > room]
    for c in long[:5]:
        say(f"  caption of {family.tokens(c)} tokens is cut to {room}: {c[:60]}")
    if len(long) > 5:
        say(f"  {len(long) - 5} more captions are cut")
    return len(long)
