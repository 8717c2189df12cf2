"""`--dry-run`: what a run would do, from the data and the base's configs alone; no weights are loaded."""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.config.job import Job
from finetune.families import load, source
from finetune.families.load import Family
from finetune.methods import adapter
from finetune.objectives.objective import objective
from finetune.training.run import pictures, report_long_captions, side

BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
# Coarse, on purpose: sustained multiply-adds a second in training. CPU: one core-pair with AVX-512; accelerator: a consumer card in bf16.
SPEED = {"cpu": 1.2e11, "accelerator": 4e13}


@dataclass(frozen=True)
class Plan:
    facts: dict[str, Any]
    text: str


def adapter_parameters(skeleton: nn.Module, names: list[str], rank: int) -> int:
    """rank (in + out) for each adapted layer; for a convolution, its kernel counts on the way in."""
    modules = dict(skeleton.named_modules())
    return sum(rank * (modules[n].weight[0].numel() + modules[n].weight.shape[0]) for n in names)


def forward_flops(family: Family, skeleton: nn.Module, side: int) -> int:
    """Floating-point operations of one denoiser call on one picture."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), redirect_stdout(io.StringIO()), counter:
        skeleton(**family.example(side))
    return counter.get_total_flops()


def weightless(job: Job) -> Family:
    """The job's base from its configs alone."""
    m = job.model
    return load.family(source.resolve(m.base, m.variant, weights=False, prediction=m.prediction_type, allow_pickle=m.allow_pickle))


def fit(job: Job) -> tuple[int, int]:
    """The side in pixels and the number of adapted layers.

    Raises:
        FinetuneError: a setting does not fit the base.
    """
    family = weightless(job)
    objective(family.schedule(), job.objective)
    return side(job, family), len(adapter.matching(family.parts.skeleton(family.spec.denoiser), job.method, family.spec))


def plan(job: Job) -> Plan:
    found = pictures(job)
    family = weightless(job)
    where, size = family.source, side(job, family)
    lines: list[str] = []
    found.describe(lines.append)
    cut = report_long_captions(family, sorted({s.caption for s in found.all}), lines.append)
    skeleton = family.parts.skeleton(where.spec.denoiser)
    objective(family.schedule(), job.objective)
    lines += family.notes()
    matched = adapter.matching(skeleton, job.method, where.spec)
    trainable = adapter_parameters(skeleton, matched, job.method.rank)
    frozen = sum(p.numel() for p in skeleton.parameters())
    batch = job.optim.batch * job.optim.accumulate * (job.run.processes or 1)
    device = "accelerator" if torch.accelerator.is_available() else "cpu"
    width = 4 if device == "cpu" else 2
    flops = forward_flops(family, skeleton, size)
    # Weights, fp32 masters with gradient and two moments, and activations as a multiple of the latents' share of work.
    memory = frozen * width + trainable * 16 + job.optim.batch * flops / 2000 * (0.3 if job.run.gradient_checkpointing else 1)
    facts = {
        "base": where.id,
        "pictures": len(found.train),
        "held_out": len(found.held),
        "dropped": len(found.found.dropped),
        "captions": len({s.caption for s in found.train}),
        "captions_cut": cut,
        "resolution": size,
        "steps": job.optim.steps,
        "global_batch": batch,
        "epochs": round(job.optim.steps / -(-len(found.train) // batch), 2),
        "adapted_layers": len(matched),
        "trainable_parameters": trainable,
        "frozen_parameters": frozen,
        "file_bytes": trainable * BYTES[job.run.save_dtype],
        "estimated_memory_bytes": int(memory),
        "estimated_seconds": round(3 * flops * job.optim.batch * job.optim.accumulate * job.optim.steps / SPEED[device], 1),
        "out": str(job.run.folder),
    }
    return Plan(facts, "\n".join([*lines, *_text(facts)]))


def _text(f: dict[str, Any]) -> list[str]:
    return [
        f"base: {f['base']} at {f['resolution']}x{f['resolution']}",
        f"captions: {f['captions']} different, {f['captions_cut']} cut at the text encoder's window",
        f"steps: {f['steps']} of {f['global_batch']} pictures, {f['epochs']} epochs",
        f"trains: {f['trainable_parameters']:,} parameters in {f['adapted_layers']} layers, beside {f['frozen_parameters']:,} frozen ones",
        f"adapter file: {f['file_bytes'] / 1e6:.2f} MB in {f['out']}",
        f"estimates, coarse: {f['estimated_memory_bytes'] / 1e9:.2f} GB of memory, {f['estimated_seconds']:.0f} s",
    ]
