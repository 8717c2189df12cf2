"""`--dry-run`: what a run would do, from the data and the base's configs alone; no weights are loaded."""

import io
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.adapters.write import DTYPES
from finetune.config.job import Job
from finetune.config.optimizers import OPTIMIZERS
from finetune.data.index_plan import IndexPlan
from finetune.families.autoencoder import unclamped
from finetune.families.family import Family
from finetune.methods import adapter
from finetune.methods.layer import Weighted
from finetune.methods.trainees import AUTOENCODER, DENOISER, Counted, Trainees
from finetune.objectives.build import asked
from finetune.preparation import automatic, base, data
from finetune.preparation import work as works
from finetune.results import export
from finetune.sampling import draw

# Coarse, on purpose: sustained multiply-adds a second in training. CPU: one core-pair with AVX-512; accelerator: a consumer card in bf16.
SPEED = {"cpu": 1.2e11, "accelerator": 4e13}
# Operations of a forward pass for each byte that it keeps for the backward one. Of Stable Diffusion 1's decoder, whose maps are large and
# whose layers are narrow, it is 415.
KEPT = {DENOISER: 2000, AUTOENCODER: 400}


@dataclass(frozen=True)
class Plan:
    facts: dict[str, Any]
    text: str


def written(trainees: Trainees, skeleton: nn.Module, count: int) -> int:
    """Numbers that a file holds for so many trainable parameters."""
    job = trainees.job
    if trainees.of("decoder"):  # the whole autoencoder, as a file and as a folder
        return 2 * sum(p.numel() for p in skeleton.parameters())
    if not trainees.of("adapter"):
        return count
    weights = [cast(Weighted, skeleton.get_submodule(name)).weight for name in trainees.layers]
    if job.run.format == "svd":
        return sum(job.method.rank * (len(weight) + weight[0].numel()) for weight in weights)
    if export.file_kind(job) == "full":
        return sum(weight.numel() for weight in weights)
    return count * (2 if job.method.init in adapter.FROM_BASE else 1)


def by_part(groups: list[Counted]) -> dict[str, int]:
    out: dict[str, int] = {}
    for group in groups:
        out[group.part] = out.get(group.part, 0) + group.parameters
    return out


def forward_flops(family: Family, skeleton: nn.Module, side: int, place: str = DENOISER) -> int:
    """Floating-point operations of one call on one picture, of the denoiser or of the autoencoder's decoder."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), redirect_stdout(io.StringIO()), counter:
        if place == AUTOENCODER:
            unclamped(skeleton, family.latents(side))
        else:
            skeleton(**family.example(side))
    return counter.get_total_flops()


def here() -> str:
    """The type of the device that a run would be on."""
    return (torch.accelerator.current_accelerator() or torch.device("cpu")).type


def fit(job: Job) -> tuple[int, dict[str, int]]:
    """The side in pixels and the numbers of trainable parameters, by part.

    Raises:
        FinetuneError: a setting does not fit the base.
    """
    work = works.planned(job, base.weightless(job), None, data.global_batch(job), here())
    return work.side, by_part(work.groups)


def plan(job: Job) -> Plan:
    gathered, batch, reads_text = data.gathered(job), data.global_batch(job), "text" in asked(job.method.kind)
    family = base.weightless(job)
    work = works.planned(job, family, gathered, batch, here())
    job, where, size = work.job, family.source, work.side
    lines: list[str] = []
    gathered.describe(lines.append)
    prepared = data.cut(job, family, gathered, batch)
    pictures, trains = prepared.pictures, by_part(work.groups)
    long = works.report_long_captions(family, pictures.captions, lines.append)
    place, skeleton = work.trainees.place, family.parts.skeleton(work.trainees.folder)
    lines += work.notes()
    count = sum(trains.values())
    own = sum(trains.get(trainee.group, 0) for trainee in work.trainees.each if trainee.how.masters and trainee.part == place)
    frozen = sum(p.numel() for p in skeleton.parameters()) - own
    device = "accelerator" if torch.accelerator.is_available() else "cpu"
    width = 4 if device == "cpu" or place == AUTOENCODER else 2
    flops = forward_flops(family, skeleton, size, place)
    # Weights, what trains with its gradient and the optimizer's state, and activations as a multiple of the latents' share of work.
    each = 12 if job.optim.masters == "bf16" else OPTIMIZERS[job.optim.optimizer].size
    kept = 0.3 if job.run.gradient_checkpointing else 1
    memory = frozen * width + count * each + job.optim.batch * flops / KEPT[place] * kept
    epoch = IndexPlan(pictures.train, prepared.batch, job.run.seed).groups[0]
    prepared.describe(lines.append)
    sizes = Counter(sample.size for sample in pictures.train)
    facts = {
        "command": job.command,
        "base": where.id,
        "pictures": len(pictures.train),
        "held_out": len(pictures.held),
        "dropped": len(pictures.listing.dropped),
        "class_pictures": job.subject.class_count if job.subject.prior else 0,
        "trigger": job.trigger,
        "captions": len(set(chain.from_iterable(sample.captions for sample in pictures.train))) if reads_text else 0,
        "captions_cut": long,
        "resolution": size,
        "steps": job.optim.steps,
        "global_batch": batch,
        "epochs": round(job.optim.steps / epoch.steps, 2),
        "steps_per_epoch": epoch.steps,
        "buckets": {str(size): count for size, count in sorted(sizes.items())},
        "fills_per_epoch": epoch.fills(0),
        "adapted_layers": len(work.trainees.layers),
        "network": work.trainees.folder,
        "trainable_parameters": count,
        "trainable_by_part": trains,
        "groups": [asdict(group) for group in work.groups],
        "optimizer": job.optim.optimizer,
        "frozen_parameters": frozen,
        "file_bytes": written(work.trainees, skeleton, count) * DTYPES[job.run.save_dtype].itemsize,
        "estimated_memory_bytes": int(memory),
        "estimated_seconds": round(automatic.PASSES * flops * job.optim.batch * job.optim.accumulate * job.optim.steps / SPEED[device], 1),
        "sample_prompts": list(job.run.sample_prompt),
        "sample_share": round(automatic.share(job, len(job.run.sample_prompt), draw.calls(family)), 3),
        "out": str(job.run.folder),
    }
    return Plan(facts, "\n".join([*lines, *_text(facts)]))


def _samples(f: dict[str, Any]) -> str:
    prompts, percent = f["sample_prompts"], 100 * f["sample_share"]
    if not prompts:
        return "samples: none, so that there is nothing to look at"
    much = f", more than {100 * automatic.SHARE:.0f} % (--no-samples)" if f["sample_share"] > automatic.SHARE else ""
    named = "one prompt" if len(prompts) == 1 else f"{len(prompts)} prompts"
    return f"samples: {named}, drawn before and after: {percent:.0f} % of the work of training{much}"


def _share(part: str, count: int) -> str:
    article = "" if part == "new_tokens" else "the "
    return f"{count:,} of {article}{part.replace('_', ' ')}"


def _rates(group: dict[str, Any]) -> str:
    decay = f", decay {group['weight_decay']:g}" if group["weight_decay"] else ""
    return f"{group['part'].replace('_', ' ')} {group['lr']:g}{decay}"


def _text(f: dict[str, Any]) -> list[str]:
    parts = ", ".join(_share(part, count) for part, count in f["trainable_by_part"].items())
    layers = f" in {f['adapted_layers']} layers" if f["adapted_layers"] else ""
    rates = "; ".join(_rates(group) for group in f["groups"])
    prior = f", half of them of {f['class_pictures']} class pictures or more" if f["class_pictures"] else ""
    said = [
        f"captions: {f['captions']} different, {f['captions_cut']} cut at the text encoder's window",
        f"trigger: {f['trigger'] or 'none'}",
    ]
    network = "autoencoder" if f["network"] == AUTOENCODER else DENOISER
    return [
        f"base: {f['base']} at {f['resolution']}x{f['resolution']}",
        *(said if f["captions"] else []),
        f"steps: {f['steps']} of {f['global_batch']} pictures{prior}, {f['epochs']} epochs",
        f"trains: {parts} parameters{layers}, beside {f['frozen_parameters']:,} frozen ones of the {network}",
        f"rates of {f['optimizer']}: {rates}",
        f"written: {f['file_bytes'] / 1e6:.2f} MB in {f['out']}",
        *([_samples(f)] if network == DENOISER else []),
        f"estimates, coarse: {f['estimated_memory_bytes'] / 1e9:.2f} GB of memory, {f['estimated_seconds']:.0f} s",
    ]
