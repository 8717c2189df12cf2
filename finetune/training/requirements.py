"""What a job asks of its pictures and of its base, before anything is trained: read, checked, said."""

from collections.abc import Callable, Sequence

from finetune.config.job import Job
from finetune.data import folder
from finetune.data.folder import Pictures, Wording
from finetune.data.templates import TEMPLATES
from finetune.errors import ConfigError
from finetune.families.load import Family

RARE = 40_000  # place in CLIP's vocabulary, which is ordered by frequency, from which an entry is no common word; sks is 48,136


def pictures(job: Job) -> Pictures:
    """The job's own pictures; class pictures need its base."""
    d = job.data
    templates = TEMPLATES[d.template if job.method.new_tokens else "none"]
    return folder.load(d.path.expanduser(), Wording(d.caption, job.trigger, templates, job.method.new_tokens), d.background, d.holdout)


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
    chosen = job.data.resolution or family.resolution
    if chosen % family.factor:
        raise ConfigError(f"--resolution {chosen}: must be a multiple of {family.factor} for this base")
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
