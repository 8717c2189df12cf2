"""What a finished run hands over: the adapter file and its model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune import files
from finetune.adapters.card import card, place
from finetune.adapters.contract import Contract, header
from finetune.adapters.layouts import lora
from finetune.adapters.read import Adapter
from finetune.adapters.write import export
from finetune.config.job import Job
from finetune.families.load import Family
from finetune.methods.adapter import Lora
from finetune.training import record


def layout(job: Job, family: Family) -> str:
    return family.spec.layout if job.run.format == "auto" else job.run.format


def write_adapter(out: Path, job: Job, family: Family, base_sha: str, side: int, loras: Mapping[str, Lora], name: str) -> Path:
    """The file (for PEFT a folder) in `out`; `base_sha` is the denoiser's fingerprint, `side` the training square in pixels."""
    spec, where, form = family.spec, family.source, layout(job, family)
    path = out / (name if form == "peft" else f"{name}.safetensors")
    steps, guidance = family.inference()
    contract = Contract(
        base=where.id,
        base_revision=where.revision,
        base_sha256=base_sha,
        family=spec.name,
        prediction_type=family.schedule().prediction_type,
        resolution=side,
        trigger=job.data.trigger,
        guidance=guidance,
        steps=steps,
        sampler=spec.sampler,
        rank=job.method.rank,
        training_alpha=job.method.strength * job.method.rank,
        trained_steps=job.optim.steps,
    )
    facts = header(contract, name, *family.labels(), where.licence)
    modules = {(spec.denoiser, n): lora(x.down, x.up) for n, x in loras.items()}
    export(modules, path, form, spec.name, job.run.save_dtype, facts, where.id)
    return path


def write_card(
    out: Path, job: Job, file: Adapter, licence: str | None, facts: Mapping[str, object], samples: Sequence[tuple[str, str]]
) -> None:
    """The model card beside `file`; its table shows the job's settings and `facts`."""
    assert file.contract  # noqa: S101  it was just written
    settings = {
        "rank, alpha, targets": f"{job.method.rank}, {job.method.strength * job.method.rank:g}, {job.method.targets}",
        "steps": job.optim.steps,
        "learning rate, schedule": f"{job.optim.lr:g}, {job.optim.schedule}",
        "resolution": file.contract.resolution,
        "caption dropout": job.data.caption_dropout,
        "seed": job.run.seed,
        "versions": ", ".join(f"{k} {v}" for k, v in record.versions().items()),
    }
    text = card(file.contract, job.run.name, file.path.name, {**facts, **settings}, licence, samples)
    files.write_text(place(out, job.run.name), text)
