"""The second stage: a job's pictures, gathered before there is a base, and cut to sizes once there is one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from finetune.config.data import Data as DataSettings
from finetune.config.job import Job
from finetune.data import index_plan, scan
from finetune.data.buckets import Buckets, largest_step
from finetune.data.captions import Wording
from finetune.data.crop import Augment
from finetune.data.encoded import Pixels
from finetune.data.inputs import INPAINT_MASK, LOSS_MASK
from finetune.data.sample import Listing, Pictures, Sample, some
from finetune.data.scan import Origin
from finetune.data.tables import Columns
from finetune.data.templates import TEMPLATES
from finetune.errors import ConfigError, DataError
from finetune.families.family import Family
from finetune.objectives.build import asked


def gathered(job: Job) -> Pictures:
    """The job's own pictures; class pictures need its base, and so do buckets."""
    return scan.load_pictures(origins(job), job.data.holdout, held_as(job))


def scanned(job: Job) -> Listing:
    """All that lies where the job's pictures come from, problems included."""
    found, places = Listing(), origins(job)
    for origin in places:
        found.add(scan.scan(origin), f"{origin.place}/" if len(places) > 1 else "")
    return found


def held_as(job: Job) -> Origin:
    """How a --holdout folder is read: as `data` says, whatever single sources say of themselves."""
    d = job.data
    return origins(job.model_copy(update={"data": d.model_copy(update={"path": d.path or ".", "sources": ()})}))[0]


def origins(job: Job) -> list[Origin]:
    """Where the job's pictures come from and how they are taken."""
    d = job.data
    wording = Wording(
        trigger=job.trigger,
        templates=TEMPLATES[d.template if job.method.new_tokens else "none"],
        tokens=job.method.new_tokens,
        shuffle=d.shuffle_tags,
        keep=d.keep_tags,
        drop=d.tag_dropout,
        wildcards=d.wildcards,
        variants=d.caption_variants,
        seed=job.run.seed,
        silent="text" not in asked(job.method.kind),
    )
    out = []
    for s in d.places:
        words = replace(wording, caption=s.caption, prefix=s.prefix or "", suffix=s.suffix or "")
        columns, each_line = Columns(s.image_column, s.caption_column), d.caption_lines == "each"
        beside = frozenset(name for name, reads in ((LOSS_MASK, s.mask == "file"), (INPAINT_MASK, d.inpaint_mask != "drawn")) if reads)
        how = s.mask == "alpha", beside, columns, s.split, each_line, s.repeats, s.weight
        out.append(Origin(s.path, words, d.background, *how))
    return out


def pixels(job: Job, reads: tuple[str, ...]) -> Pixels:
    """How the job's pictures become pixels; `reads` are the columns that are read besides latents."""
    d, masks = job.data, INPAINT_MASK in reads
    return Pixels(d.background, Augment(d.flip, d.random_crop, d.colour_jitter, d.variants, masks), reads, d.inpaint_mask == "file")


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


def instances(job: Job, batch: int) -> int:
    """How many of a global batch's pictures are the job's own; class pictures are the other half."""
    return max(1, batch // 2) if job.subject.prior else batch


def global_batch(job: Job, processes: int | None = None) -> int:
    """Pictures a step, over the processes that run; where nothing runs yet, over those that the job asks for."""
    return job.optim.batch * job.optim.accumulate * (processes or job.run.processes or 1)


@dataclass(frozen=True)
class Data:
    """Pictures with the sizes that they are cut to, and how many of a step's are the job's own."""

    pictures: Pictures
    sizes: Buckets
    batch: int
    unread: Sequence[str] = ()  # pictures with an inpainting mask of their own, which the run does not read

    def describe(self, say: Callable[[str], None]) -> None:
        if self.unread:
            say(f"  {len(self.unread)} with an inpainting mask, not used: nothing is repainted in this run")
        index_plan.describe(self.pictures.train, self.batch, self.sizes, say)


def cut(job: Job, family: Family, pictures: Pictures, batch: int, classes: Sequence[Sample] = ()) -> Data:
    """Gives every picture the size that it is cut to: those to train on one at each resolution, the others at the first. `batch` is the
    global one.

    Raises:
        ConfigError: the base's autoencoder cannot make a size, or its denoiser knows none so long.
        DataError: a picture has no inpainting mask of its own, and is to have one.
    """
    unread: list[str] = []
    if family.repaints and "denoiser" in asked(job.method.kind):
        _check_masks(job, pictures)
    else:
        _check_unmasked(job)
        unread = [s.name for s in pictures.all if INPAINT_MASK in s.inputs]
        if unread:
            pictures = replace(pictures, train=_unmasked(pictures.train), held=_unmasked(pictures.held))
    sizes, of_job = buckets(job, family), instances(job, batch)
    train = sizes.assign(pictures.train, batch=of_job)
    beside = sizes.assign(list(classes), sizes.sides[:1])  # they were drawn at that resolution
    held = sizes.assign(pictures.held, sizes.sides[:1])
    _check_sides(family, max(chain(sizes.sides, *(s.size for s in (*train, *beside, *held)))))
    return Data(replace(pictures, train=train, classes=beside, held=held), sizes, of_job, unread)


def _check_sides(family: Family, side: int) -> None:
    """Raises:
    ConfigError: the longest side of all is of more positions than the denoiser has.
    """
    longest = family.edition.longest
    if longest and side > longest:
        raise ConfigError(
            f"--resolution: a picture becomes {side} pixels long, and {family.source.id} knows no sides of more than {longest}",
            "a lower one; or --set data.buckets=false, where the picture is an oblong",
        )


def _unmasked(samples: Sequence[Sample]) -> list[Sample]:
    """Without inpainting masks."""
    return [replace(s, inputs={name: file for name, file in s.inputs.items() if name != INPAINT_MASK}) for s in samples]


def _check_unmasked(job: Job) -> None:
    """Raises:
    ConfigError: a setting is for a base that reads inpainting masks, and this one reads none.
    """
    d, default = job.data, DataSettings.model_fields
    if d.variants != default["variants"].default and not (d.random_crop or d.colour_jitter):
        raise ConfigError("data.variants: neither crops nor colours are random", "leave it out")
    if d.inpaint_mask != default["inpaint_mask"].default:
        raise ConfigError(f"data.inpaint_mask {d.inpaint_mask}: this base does not repaint", "leave it out, or choose one that does")


def _check_masks(job: Job, pictures: Pictures) -> None:
    """Raises:
    DataError: a picture has no inpainting mask of its own, where each is to have one.
    """
    if job.data.inpaint_mask != "file":
        return
    if lacking := [s.name for s in (*pictures.train, *pictures.held) if INPAINT_MASK not in s.inputs]:
        hint = "put one beside each, white where it is to be repainted; or data.inpaint_mask=both draws them"
        raise DataError(f"data.inpaint_mask file: there is no name.inpaint.png beside {some(lacking)}", hint)
