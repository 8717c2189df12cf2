"""A step's share on one process: pictures of one size, by the names of their columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.data.cache import Row
from finetune.data.inputs import COLUMNS, Column
from finetune.draws import Draws
from finetune.tensors import to_device


@dataclass(frozen=True)
class Batch:
    """`columns` [B, ...] by the names in data/inputs.py; one that no sample has is absent."""

    columns: Mapping[str, Tensor]
    captions: Sequence[str | None]  # None: what inference puts in the place of a caption
    weights: Tensor  # [B], of the loss
    slots: Sequence[int]  # positions in the global batch

    def to(self, device: torch.device) -> "Batch":
        """The same batch with columns and weights on `device`."""
        columns = {name: to_device(column, device) for name, column in self.columns.items()}
        return replace(self, columns=columns, weights=to_device(self.weights, device))


def columns(rows: Sequence[Row], draws: Draws | None = None) -> dict[str, Tensor]:
    """The columns of a batch of one size, by name; one that no row has is absent. Without `draws`, nothing is drawn."""
    out: dict[str, Tensor] = {}
    for name, column in COLUMNS.items():
        first = next((row[column.kept] for row in rows if column.kept in row), None)
        if first is None:
            continue
        noise = draws.normal(column.noise, first.shape) if draws is not None and column.noise else [None] * len(rows)
        out[name] = torch.stack([_cell(column, row, one) for row, one in zip(rows, noise, strict=True)])
    return out


def _cell(column: Column, row: Row, noise: Tensor | None) -> Tensor:
    if column.kept in row or column.missing is None:
        return column.make(row, noise)
    return column.missing(row)
