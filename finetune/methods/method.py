"""What trains in a run: an adapter or all weights of the denoiser, the text encoders in the same way, new tokens; each at its rate."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from finetune.config.job import Job
from finetune.families.load import Family
from finetune.methods import adapter, full, textual_inversion
from finetune.methods.textual_inversion import NewRows

DENOISER = "denoiser"


@dataclass(frozen=True)
class Group:
    """Parameters by name that train at one peak rate, until a share of the steps."""

    parameters: Mapping[str, nn.Parameter]
    lr: float
    weight_decay: float
    until: float = 1.0


def attach(family: Family, nets: Mapping[str, nn.Module], job: Job) -> list[Group]:
    """Freezes all `nets` (the denoiser, and the text encoders that take part in a step), injects, and returns what trains.

    Raises:
        ConfigError: a target matches no layer.
    """
    m, o, spec = job.method, job.optim, family.spec
    for net in nets.values():
        net.requires_grad_(False)
        undrop(net)
    groups = []
    for part in taught(family, job):
        lr = o.lr if part == DENOISER else m.text_encoder_lr or o.lr / 5
        idle = family.idle(part) if part in spec.text else ()
        if m.kind == "full":
            found = full.attach(nets[part], idle)
        else:
            choices = spec.text_targets if part in spec.text else spec.targets
            found = adapter.attach(nets[part], m, choices, job.run.seed, idle)
        groups.append(Group({f"{part}.{n}": p for n, p in found.items()}, lr, o.weight_decay))
    if m.new_tokens:
        lr = o.lr if m.kind == "none" else m.token_lr or 5e-3
        rows = {f"{part}.new_tokens": new_rows(family, nets[part], part, job).rows for part in spec.text}
        groups.append(Group(rows, lr, 0.0, m.token_until))
    return groups


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
    """What follows an update: new tokens' norms are kept near those of words, for as long as they train."""
    if job.method.new_tokens and step / job.optim.steps < job.method.token_until:
        for net in nets.values():
            for module in net.modules():
                if isinstance(module, NewRows):
                    module.retract()
