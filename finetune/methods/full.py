"""Full fine-tuning: every weight of a network, or of a part of it, trains, as an fp32 master, or in bf16 with stochastic rounding."""

import torch
from torch import nn


def attach(net: nn.Module, idle: tuple[str, ...], masters: torch.dtype, only: str = "") -> dict[str, nn.Parameter]:
    """What trains, by name: all of `net`, or what begins with `only`, as `masters`, but for a text encoder's table of words and what it
    does not use (`idle` beginnings).

    The table stays: the words of a caption are few, and AdamW's decay and moments would change and cost every word's row.
    """
    net.to(masters)
    table = getattr(net, "get_input_embeddings", lambda: None)()
    kept = {id(p) for p in table.parameters()} if table is not None else set()
    trainable = {}
    for name, parameter in net.named_parameters():
        if id(parameter) in kept or name.startswith(idle) or not name.startswith(only):
            continue
        parameter.requires_grad_(True)
        trainable[name] = parameter
    return trainable
