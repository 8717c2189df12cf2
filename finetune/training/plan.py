"""`--dry-run`: what a run would do, from the data and the base's configs alone; no weights are loaded."""

import io
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.config import optimizers
from finetune.config.job import Job
from finetune.config.optimizers import OPTIMIZERS
from finetune.data.plan import IndexPlan, describe
from finetune.data.sample import Found, Pictures
from finetune.families import load
from finetune.families.family import Family
from finetune.methods import adapter, method
from finetune.methods.adapter import Start
from finetune.objectives.build import objective
from finetune.preparation import automatic
from finetune.preparation.requirements import (
    add_tokens,
    base,
    buckets,
    check_drawing,
    check_subject,
    cut,
    pictures,
    planned,
    report_long_captions,
    settled,
    shown,
    side,
)
from finetune.preparation.start import start
from finetune.results import export
from finetune.sampling import draw

BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
# Coarse, on purpose: sustained multiply-adds a second in training. CPU: one core-pair with AVX-512; accelerator: a consumer card in bf16.
SPEED = {"cpu": 1.2e11, "accelerator": 4e13}


@dataclass(frozen=True)
class Plan:
    facts: dict[str, Any]
    text: str


def trainable(job: Job, family: Family, learned: dict[str, Start] | None) -> list[dict[str, Any]]:
    """What trains, counted on networks without weights: the part, parameters, peak rate and weight decay of each group.

    Raises:
        ConfigError: what cannot be attached, or trained so.
    """
    m, spec = job.method, family.spec
    nets = {k: family.parts.skeleton(part) for k, part in method.parts(family, job).items()}
    rest = job.model_copy(update={"method": m.model_copy(update={"new_tokens": ()})})
    groups = method.attach(family, nets, rest, learned)
    out: list[dict[str, Any]] = [
        {
            "part": next(iter(g.parameters)).split(".")[0],
            "parameters": sum(p.numel() for p in g.parameters.values()),
            "lr": g.lr,
            "weight_decay": g.weight_decay,
        }
        for g in groups
    ]
    if m.new_tokens:
        widths = [nets[p].get_input_embeddings().weight.shape[1] for p in spec.text]  # type: ignore[operator]
        count = len(m.new_tokens) * m.vectors * sum(widths)
        out.append({"part": "new_tokens", "parameters": count, "lr": method.token_rate(job), "weight_decay": 0.0})
    optimizers.check_rates(job.optim.optimizer, [g["lr"] for g in out])
    return out


def written(job: Job, skeleton: nn.Module, matched: list[str], count: int) -> int:
    """Numbers that a file holds for so many trainable parameters."""
    m = job.method
    if not m.adapts:
        return count
    layers: list[Any] = [skeleton.get_submodule(name) for name in matched]
    if job.run.format == "svd":
        return sum(m.rank * (len(layer.weight) + layer.weight[0].numel()) for layer in layers)
    if export.held(job) == "full":
        return sum(layer.weight.numel() for layer in layers)
    return count * (2 if m.init in adapter.FROM_BASE else 1)


def by_part(groups: list[dict[str, Any]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for group in groups:
        out[group["part"]] = out.get(group["part"], 0) + group["parameters"]
    return out


def forward_flops(family: Family, skeleton: nn.Module, side: int) -> int:
    """Floating-point operations of one denoiser call on one picture."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), redirect_stdout(io.StringIO()), counter:
        skeleton(**family.example(side))
    return counter.get_total_flops()


def weightless(job: Job) -> Family:
    """The job's base from its configs alone."""
    return load.family(base(job, weights=False))


def fit(job: Job) -> tuple[int, dict[str, int]]:
    """The side in pixels and the numbers of trainable parameters, by part.

    Raises:
        FinetuneError: a setting does not fit the base.
    """
    family = weightless(job)
    job = automatic.resolved(job, Pictures(Found(), [], []), 0)  # without pictures, nothing is chosen of them
    objective(family.schedule(), job.objective, job.trigger)
    return side(job, family), by_part(check(job, family, [])[1])


def check(job: Job, family: Family, captions: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """What `Runner.prepare` refuses, refused here too; returns the adapted layers, and what trains, by groups."""
    optimizers.check(job.optim.optimizer, (torch.accelerator.current_accelerator() or torch.device("cpu")).type)
    check_drawing(job, family)
    check_subject(job, family, planned(job))
    add_tokens(job, family, captions)
    learned = start(job, family)
    return export.check(job, family, learned), trainable(job, family, learned)


def plan(job: Job) -> Plan:
    found = pictures(job)
    family = weightless(job)
    job = settled(job, found, family)
    where, size = family.source, side(job, family)
    lines: list[str] = []
    found.describe(lines.append)
    batch, sizes = planned(job), buckets(job, family)
    own = shown(job, batch)
    cut(found, sizes, own)
    captions = found.captions
    matched, groups = check(job, family, captions)
    trains = by_part(groups)
    long = report_long_captions(family, captions, lines.append)
    skeleton = family.parts.skeleton(where.spec.denoiser)
    objective(family.schedule(), job.objective, job.trigger)
    lines += family.notes() + export.notes(job, family, matched)
    count = sum(trains.values())
    frozen = sum(p.numel() for p in skeleton.parameters()) - (trains.get(method.DENOISER, 0) if job.method.kind == "full" else 0)
    device = "accelerator" if torch.accelerator.is_available() else "cpu"
    width = 4 if device == "cpu" else 2
    flops = forward_flops(family, skeleton, size)
    # Weights, what trains with its gradient and the optimizer's state, and activations as a multiple of the latents' share of work.
    each = 12 if job.optim.masters == "bf16" else OPTIMIZERS[job.optim.optimizer].size
    memory = frozen * width + count * each + job.optim.batch * flops / 2000 * (0.3 if job.run.gradient_checkpointing else 1)
    epoch = IndexPlan(found.train, own, job.run.seed).groups[0]
    describe(found.train, own, sizes, lines.append)
    facts = {
        "command": job.command,
        "base": where.id,
        "pictures": len(found.train),
        "held_out": len(found.held),
        "dropped": len(found.found.dropped),
        "class_pictures": job.subject.class_count if job.subject.prior else 0,
        "trigger": job.trigger,
        "captions": len({c for s in found.train for c in s.captions}),
        "captions_cut": long,
        "resolution": size,
        "steps": job.optim.steps,
        "global_batch": batch,
        "epochs": round(job.optim.steps / epoch.steps, 2),
        "steps_per_epoch": epoch.steps,
        "buckets": {str(size): count for size, count in sorted(Counter(s.size for s in found.train).items())},
        "fills_per_epoch": epoch.fills(0),
        "adapted_layers": len(matched),
        "trainable_parameters": count,
        "trainable_by_part": trains,
        "groups": groups,
        "optimizer": job.optim.optimizer,
        "frozen_parameters": frozen,
        "file_bytes": written(job, skeleton, matched, count) * BYTES[job.run.save_dtype],
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


def _text(f: dict[str, Any]) -> list[str]:
    parts = ", ".join(f"{n:,} of {'' if p == 'new_tokens' else 'the '}{p.replace('_', ' ')}" for p, n in f["trainable_by_part"].items())
    layers = f" in {f['adapted_layers']} layers" if f["adapted_layers"] else ""
    rates = "; ".join(
        f"{g['part'].replace('_', ' ')} {g['lr']:g}" + (f", decay {g['weight_decay']:g}" if g["weight_decay"] else "") for g in f["groups"]
    )
    prior = f", half of them of {f['class_pictures']} class pictures or more" if f["class_pictures"] else ""
    return [
        f"base: {f['base']} at {f['resolution']}x{f['resolution']}",
        f"captions: {f['captions']} different, {f['captions_cut']} cut at the text encoder's window",
        f"trigger: {f['trigger'] or 'none'}",
        f"steps: {f['steps']} of {f['global_batch']} pictures{prior}, {f['epochs']} epochs",
        f"trains: {parts} parameters{layers}, beside {f['frozen_parameters']:,} frozen ones of the denoiser",
        f"rates of {f['optimizer']}: {rates}",
        f"written: {f['file_bytes'] / 1e6:.2f} MB in {f['out']}",
        _samples(f),
        f"estimates, coarse: {f['estimated_memory_bytes'] / 1e9:.2f} GB of memory, {f['estimated_seconds']:.0f} s",
    ]
