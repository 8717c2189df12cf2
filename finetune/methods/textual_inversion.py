"""Textual Inversion (Gal et al. 2022, arXiv:2208.01618): new tokens whose embeddings train, and nothing else of the text encoder."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune import randomness
from finetune.methods.networks import TransformersModel

RETRACT = 0.1  # share of the way, in logarithms, that a row's norm is drawn back to the table's each step


class NewRows(nn.Module):
    """A frozen table of embeddings and trainable rows for the ids from `first` on.

    The rows are a parameter of their own, so that gradient, optimizer and gathering touch N rows. One step of AdamW on CLIP-L's whole
    table takes 370 ms on one CPU thread; PEFT's trainable tokens copy the table in every forward.
    """

    def __init__(self, table: nn.Embedding, rows: Tensor, first: int) -> None:
        super().__init__()
        self.table, self.rows, self.first = table, nn.Parameter(rows.float().to(table.weight.device)), first

    @property
    def weight(self) -> Tensor:
        """What a library may ask for its number format and device."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """[B, N] -> [B, N, D] in the table's number format."""
        new = ids >= self.first
        old = self.table(ids.masked_fill(new, 0))
        rows = F.embedding((ids - self.first).clamp(min=0), self.rows).to(old.dtype)
        return torch.where(new[..., None], rows, old)

    @torch.no_grad()
    def retract(self) -> None:
        """Draws every row's norm towards the mean norm of the table: a longer one would drown the other words of a prompt."""
        norms = self.rows.norm(dim=1, keepdim=True)
        self.rows.mul_((self.typical / norms.clamp(min=1e-8)) ** RETRACT)

    @property
    def typical(self) -> float:
        """The mean norm of the table's rows."""
        if not hasattr(self, "_typical"):
            self._typical = float(self.table.weight[: self.first].float().norm(dim=1).mean())
        return self._typical


def initial(table: Tensor, like: Sequence[int], vectors: int, *key: randomness.Key) -> Tensor:
    """[vectors, D]: the rows of the words `like`, over and over, the repeated ones a little apart; random at the table's scale where
    there are none."""
    noise = torch.randn(vectors, table.shape[1], generator=randomness.generator(*key))
    if not like:
        return table.float().mean(0).cpu() + table.float().std(0).cpu() * noise
    rows = table[[like[i % len(like)] for i in range(vectors)]].float().cpu()
    again = torch.arange(vectors)[:, None] >= len(like)
    return rows + 0.1 * rows.std() * noise * again


def words_of(encoder: nn.Module) -> nn.Embedding:
    """A text encoder's embeddings of words."""
    return cast(nn.Embedding, cast(TransformersModel, encoder).get_input_embeddings())


def rows_of(encoder: nn.Module) -> NewRows:
    """What `attach` put into a text encoder."""
    return cast(NewRows, cast(TransformersModel, encoder).get_input_embeddings())


def attach(encoder: nn.Module, rows: Tensor, first: int) -> NewRows:
    """Puts `rows` [N, D] behind the text encoder's table, for the ids from `first` on."""
    new = NewRows(words_of(encoder), rows, first)
    cast(TransformersModel, encoder).set_input_embeddings(new)
    return new


def result(encoder: nn.Module, tokens: Mapping[str, int]) -> dict[str, Tensor]:
    """The rows of each token, [vectors, D], fp32 on the CPU; `tokens` are names with their numbers of vectors."""
    parts = torch.split(rows_of(encoder).rows.detach().float().cpu().clone(), list(tokens.values()))
    return dict(zip(tokens, parts, strict=True))
