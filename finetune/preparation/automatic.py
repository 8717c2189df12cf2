"""What `auto` becomes, where a command line leaves it open which pictures are held out and which prompts are drawn. Torch-free."""

from collections.abc import Iterator

from finetune.config import Job
from finetune.config.precedence import Settings
from finetune.data.sample import Pictures
from finetune.data.scan import AUTO_FRACTION
from finetune.errors import ConfigError
from finetune.results import checkpoint, record
from finetune.run_folder import RunFolder
from finetune.text import AUTO

SHARE = 0.1  # of the work of training that drawing may take
MOST = 4  # prompts: as many rows as are looked at
PASSES = 3  # forward passes that a step's forward and backward take as long as
RECOMPUTED = 4  # the same, with gradient checkpointing


def as_before(job: Job, given: Settings) -> Job:
    """The job with what an earlier run in its folder made of `auto`: the same command goes on, and what is finished stays so.

    What was `given` in so many words, as `--sample-prompt auto`, is chosen anew; and so is all where there is nothing to go on from.
    """
    out = job.run.folder
    if not (job.data.holdout == AUTO or job.run.automatic):
        return job
    if not (checkpoint.steps(RunFolder(out).checkpoints) or RunFolder(out).summary.exists()):
        return job
    try:
        before = record.settings(out)
    except ConfigError:  # none, damaged, or of another version
        return job
    held, prompts = job.data.holdout, job.run.sample_prompt
    if held == AUTO and "holdout" not in given.get("data", {}):
        held = before.data.holdout
    if job.run.automatic and "sample_prompt" not in given.get("run", {}):
        prompts = before.run.sample_prompt
    return _with(job, held, prompts)


def resolved(job: Job, pictures: Pictures, calls: int) -> Job:
    """The job with what was held out and what is to be drawn; `calls` are the denoiser's for one picture, 0 where none can be drawn."""
    held = job.data.holdout
    if held == AUTO:
        held = AUTO_FRACTION if pictures.held else None
    return _with(job, held, prompts(job, pictures, calls) if job.run.automatic else job.run.sample_prompt)


def _with(job: Job, holdout: str | float | None, prompts: tuple[str, ...]) -> Job:
    data = job.data.model_copy(update={"holdout": holdout})
    return job.model_copy(update={"data": data, "run": job.run.model_copy(update={"sample_prompt": prompts})})


def prompts(job: Job, pictures: Pictures, calls: int) -> tuple[str, ...]:
    """The trigger and a few captions, those of held-out pictures first; as many as `SHARE` allows, and one at least."""
    if not calls:
        return ()
    room = int(SHARE / share(job, 1, calls))
    return tuple(dict.fromkeys(_shown(job, pictures)))[: max(1, min(MOST, room))]


def _shown(job: Job, pictures: Pictures) -> Iterator[str]:
    if job.trigger:
        yield job.trigger
    for side in (pictures.held, pictures.train):
        for sample in sorted(side, key=lambda s: s.content):
            yield sample.caption


def share(job: Job, prompts: int, calls: int) -> float:
    """How much of the work of training the pictures of so many prompts are, drawn before, after, and every `run.sample_every` steps."""
    o = job.optim
    looks = len(range(0, o.steps, job.run.sample_every)) + 1
    passes = RECOMPUTED if job.run.gradient_checkpointing else PASSES
    return prompts * looks * calls / (passes * o.batch * o.accumulate * o.steps)
