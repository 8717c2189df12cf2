"""All of a run that can be refused before its networks are loaded: base, data, work, and what an earlier run left in the folder."""

from dataclasses import dataclass, replace
from typing import Any

from finetune import files
from finetune.config.job import Job
from finetune.data import prune
from finetune.families import load, trust
from finetune.header import tensors_file
from finetune.preparation import base, data
from finetune.preparation import work as works
from finetune.preparation.class_pictures import ClassPictures
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
    base_sha: str  # of the denoiser that is trained on


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
    batch = job.optim.batch * job.optim.accumulate * process.count
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
    hashes = _hashes(work)
    identity = record.identity(work.job, hashes, process.count)
    earlier = Earlier.of(work.job)
    earlier.refuse(identity)  # before class pictures are drawn for nothing
    prepared = data.cut(work.job, family, pictures, batch, _class_pictures(process, work))
    prepared.describe(say)
    identity[record.PICTURES] = prepared.pictures.fingerprint()
    earlier.refuse_pictures(identity, prepared.pictures, say)
    process.wait()  # all have looked, before the first process removes anything
    if earlier.facts is None and process.main:
        record.clear(out)  # what one left that never got to a valid checkpoint
    return Ready(work, prepared, earlier, identity, hashes[where.spec.denoiser])


def _hashes(work: Work) -> dict[str, str]:
    """Of what the run is made from besides its pictures: the base's parts, and a file that it goes on from."""
    where, start = work.family.source, work.job.method.start
    hashes = {part: where.fingerprint(part) for part in (*where.spec.parts, *where.spec.tokenizers, "scheduler")}
    return hashes if start is None else hashes | {"start": files.sha256(tensors_file(start))}


def _class_pictures(process: Process, work: Work) -> list[Any]:
    """Those that prior preservation asks for; the missing ones are drawn."""
    if not work.job.subject.prior:
        return []
    family, say = work.family, process.tracker.say
    if family.source.zero_snr:  # the base draws by its own schedule
        family = load.family(replace(family.source, zero_snr=False), family.device, family.dtype)
    pictures = ClassPictures(work.job, family, work.side)
    pictures.ensure(process.accelerator.process_index, process.count, process.tracker.phase, process.stop.poll)
    process.wait()
    samples = pictures.samples()
    say(f"class pictures: {len(samples)} in {pictures.folder}")
    pictures.own.describe(say)
    return samples
