"""All of a run that comes before its networks: base, data, work, and what an earlier run left in the folder. What can be refused without
a network is, before the base draws the class pictures that are missing."""

from dataclasses import dataclass
from typing import Any

from finetune import files
from finetune.config.job import Job
from finetune.data import prune
from finetune.families import load, trust
from finetune.preparation import base, data
from finetune.preparation import work as works
from finetune.preparation.class_pictures import class_pictures
from finetune.preparation.data import Data
from finetune.preparation.work import Work
from finetune.results import clean, record
from finetune.results.earlier import Earlier
from finetune.training import device
from finetune.training.process import Process


@dataclass(frozen=True)
class Ready:
    work: Work
    data: Data
    earlier: Earlier
    identity: dict[str, Any]  # what must not differ when the run goes on
    base_sha: str  # of the denoiser that is trained on, or the autoencoder


def ready(process: Process, job: Job, fresh: bool) -> Ready:
    """Raises:
    FinetuneError: pictures, base, settings, or another run in the folder.
    """
    say, out = process.tracker.say, process.folder.path
    if process.main:
        prune.note_beginning(out)
        clean.sweep(out)
    pictures = data.gathered(job)
    pictures.describe(say)
    accelerator, dtype = process.accelerator, device.DTYPES[device.precision(job, process.accelerator.device)]
    with accelerator.main_process_first():  # which may download or unpack it for all
        where = base.located(job)
        trust.remember(job.model.base)
    family = load.family(where, accelerator.device, dtype)
    batch = data.global_batch(job, process.count)
    work = works.planned(job, family, pictures, batch, accelerator.device.type)
    if job.run.automatic and work.job.run.sample_prompt:
        say(f"draws before and after: {', '.join(p[:40] for p in work.job.run.sample_prompt)} (--no-samples draws nothing)")
    for note in work.notes():
        say(note)
    if process.main:
        files.check_writable(out)
        if fresh:
            record.clear(out)
    process.wait()
    hashes = work.hashes()
    identity = record.identity(work.job, hashes, batch)
    earlier = Earlier.of(work.job)
    earlier.refuse(identity)  # before class pictures are drawn for nothing
    prepared = data.cut(work.job, family, pictures, batch, class_pictures(work, process.crew))
    prepared.describe(say)
    identity[record.PICTURES] = prepared.pictures.fingerprint()
    earlier.refuse_pictures(identity, prepared.pictures, say)
    process.wait()  # all have looked, before the first process removes anything
    if earlier.identity is None and process.main:
        record.clear(out)  # what one left that never got to a valid checkpoint
    return Ready(work, prepared, earlier, identity, hashes[work.trainees.folder])
