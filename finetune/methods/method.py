"""What trains in a run: an adapter or all weights of the denoiser, the text encoders in the same way, new tokens; each at its rate."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from finetune.config.adapter_types import ROWS
from finetune.config.job import Job
from finetune.config.method import usual_rate
from finetune.errors import ConfigError
from finetune.families.family import Family
from finetune.methods import adapter, full, textual_inversion
from finetune.methods.adapter import Size, Start
from finetune.methods.textual_inversion import NewRows

DENOISER = "denoiser"


@dataclass(frozen=True)
class Group:
    """Parameters by name that train at one peak rate, until a share of the steps."""

    parameters: Mapping[str, nn.Parameter]
    lr: float
    weight_decay: float
    until: float = 1.0


def attach(family: Family, nets: Mapping[str, nn.Module], job: Job, start: Mapping[str, Start] | None = None) -> list[Group]:
    """Freezes all `nets` (the denoiser, and the text encoders that take part in a step), injects, and returns what trains.

    `start` is what an adapter goes on from, by network and layer.

    Raises:
        ConfigError: a target or a pattern matches no layer.
    """
    m, o, spec = job.method, job.optim, family.spec
    wanted = layers(family, nets, job, start) if m.adapts else {}
    for net in nets.values():
        net.requires_grad_(False)
        undrop(net)
    groups = []
    for part in taught(family, job):
        lr = o.lr if part == DENOISER else text_encoder_rate(job)
        if m.kind == "full":
            found = full.attach(nets[part], idle(family, part), torch.bfloat16 if o.masters == "bf16" else torch.float32)
        else:
            found = adapter.attach(nets[part], m, wanted[part], job.run.seed, (start or {}).get(part))
        groups.append(Group({f"{part}.{n}": p for n, p in found.items()}, lr, o.weight_decay))
    groups = rated(groups, job)
    if m.new_tokens:
        rows = {f"{part}.new_tokens": new_rows(family, nets[part], part, job).rows for part in spec.text}
        groups.append(Group(rows, token_rate(job), 0.0, m.token_until))
    return groups


def text_encoder_rate(job: Job) -> float:
    """A fifth of the denoiser's where none is given; the same for an optimizer that finds one rate for all."""
    return job.method.text_encoder_lr or (job.optim.lr if job.optim.one_rate else job.optim.lr / 5)


def token_rate(job: Job) -> float:
    """Of new tokens: the job's where they train alone; beside an adapter, where none is given, what they would train with alone."""
    m, o = job.method, job.optim
    return o.lr if m.kind == "none" or o.one_rate else m.token_lr or usual_rate("none", o.optimizer, job.model.base)


def idle(family: Family, part: str) -> tuple[str, ...]:
    """Beginnings of the names of weights that a network has and does not use."""
    return family.idle(part) if part in family.spec.text else ()


def layers(family: Family, nets: Mapping[str, nn.Module], job: Job, start: Mapping[str, Start] | None = None) -> dict[str, dict[str, Size]]:
    """The layers that an adapter goes into, by network, with their ranks and alphas: those of `start`, or what the job asks for.

    Targets that were named by hand are the denoiser's; a text encoder's attention is adapted then.

    Raises:
        ConfigError: a target matches no linear or convolution layer, or a pattern none of those that are adapted.
    """
    m, spec = job.method, family.spec
    if start is not None:
        return {part: {n: learned.size for n, learned in start[part].items()} for part in taught(family, job)}
    found = {}
    for part in taught(family, job):
        choices = spec.text_targets if part in spec.text else spec.targets
        targets = m.targets if part == DENOISER or m.targets in choices else "attention"
        unused = idle(family, part) or ("\0",)
        found[part] = [n for n in adapter.matching(nets[part], targets, choices) if not n.removeprefix("text_model.").startswith(unused)]
    sizes = adapter.sizes(m, [f"{part}.{n}" for part, names in found.items() for n in names])
    return {part: {n: sizes[f"{part}.{n}"] for n in names} for part, names in found.items()}


def rated(groups: Iterable[Group], job: Job) -> list[Group]:
    """The same parameters in groups of one rate and decay each: that of LoRA+ for up matrices, times that of the pattern that is found in
    the name. What stands for the base's own weights, DoRA's norms and matrices that begin with a part of them, does not decay.

    Raises:
        ConfigError: see `adapter.spread`.
    """
    names = [n for g in groups for n in g.parameters]
    factors = adapter.spread("optim.lr_pattern", job.optim.lr_pattern, names)
    optim, row, of_base = job.optim, ROWS.get(job.method.kind), job.method.init in adapter.FROM_BASE
    out = []
    for g in groups:
        alike: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
        for name, parameter in g.parameters.items():
            rate = g.lr * factors.get(name, 1.0) * (optim.lora_plus if row and row.names("up", name) else 1.0)
            decay = 0.0 if of_base or (row and row.names("rows", name)) else g.weight_decay
            parameter.requires_grad_(rate > 0)
            if rate > 0:
                alike.setdefault((rate, decay), {})[name] = parameter
        out += [replace(g, parameters=some, lr=rate, weight_decay=decay) for (rate, decay), some in alike.items()]
    if names and not out:
        raise ConfigError("optim.lr_pattern: nothing would train, as all factors are 0", "leave some parameters out of the patterns")
    return out


def parts(family: Family, job: Job) -> dict[str, str]:
    """The networks that take part in a step, by their places in it, as the folders of the base's that they come from."""
    return {DENOISER: family.spec.denoiser} | ({p: p for p in family.spec.text} if job.method.live else {})


def taught(family: Family, job: Job) -> list[str]:
    """The networks that train by the job's kind, an adapter or all weights: by their places in a step."""
    m = job.method
    return ([DENOISER] if m.kind != "none" else []) + (list(family.spec.taught_text) if m.text_encoder else [])


def undrop(net: nn.Module) -> None:
    """Turns off the dropout that a network came with, as in T5: what it says while it trains is what it will say when it is used."""
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(vars(module).get("dropout"), float):  # the attention of transformers
            module.dropout = 0.0  # type: ignore[assignment]


def new_rows(family: Family, encoder: nn.Module, part: str, job: Job) -> NewRows:
    """The rows of the job's new tokens, which the family's words know already."""
    m, first = job.method, family.words.size[part]
    table = encoder.get_input_embeddings().weight[:first]  # type: ignore[operator]
    like = family.words.ids(part, m.init_word) if m.init_word else []
    rows = [textual_inversion.initial(table, like, m.vectors, job.run.seed, "new token", t, part) for t in m.new_tokens]
    return textual_inversion.attach(encoder, torch.cat(rows), first)


def settle(nets: Mapping[str, nn.Module], job: Job, step: int) -> None:
    """What follows an update: an adapter's change is kept within its bound, and new tokens' norms near those of words while they train."""
    if job.method.max_norm is not None:
        for net in nets.values():
            adapter.limit(net, job.method.max_norm)
    if job.method.new_tokens and step / job.optim.steps < job.method.token_until:
        for net in nets.values():
            for module in net.modules():
                if isinstance(module, NewRows):
                    module.retract()
