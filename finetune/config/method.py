"""What trains: an adapter, all weights, new tokens, or the decoder; and the rate of each where none is given."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from finetune.bases import TINY, embedded
from finetune.config.adapter_types import INITS, ROWS
from finetune.config.optimizers import OPTIMIZERS
from finetune.config.section import Rate, Section, Word

if TYPE_CHECKING:
    Kind = str
    Init = str
else:
    Kind, Init = Literal[(*ROWS, "full", "none", "decoder")], Literal[tuple(INITS)]


class Method(Section):
    kind: Kind = Field(
        "lora",
        description="what trains in the denoiser: an adapter, all its weights, or nothing (new tokens alone); or the decoder alone",
    )
    rank: Annotated[int, Field(ge=1, le=1024)] = Field(8, description="rank of the adapter's matrices; of oft, the size of a block")
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(None, description="strength is alpha / rank (the rank)")
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=1024)]] = Field(
        {}, description="ranks of layers, by regular expressions that are searched in their names"
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field({}, description="alphas of layers, likewise")
    init: Init = Field("default", description="how LoRA's matrices begin; pissa and olora begin with a part of the base's weights")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout of the adapter's input; of loha and lokr of rows of the change, of oft of blocks"
    )
    factor: Annotated[int, Field(ge=-1)] = Field(-1, description="size of lokr's small matrix, where it divides the layer's (the root)")
    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="largest norm of a layer's change of weight; larger ones are scaled down after each step (off)"
    )
    targets: str = Field(
        "attention",
        description="attention, attention+ff, all-linear, all, endings of names with commas, or re: and a regular expression",
    )
    start: Path | None = Field(None, description="adapter file to go on from, with its layers and ranks")
    text_encoder: bool = Field(False, description="train the text encoder too, as the denoiser is trained; CLIP only")
    text_encoder_lr: Rate | None = Field(None, description="peak learning rate of the text encoder (a fifth of the denoiser's)")
    new_tokens: tuple[Word, ...] = Field((), description="new token to learn an embedding for; may be given several times")
    vectors: Annotated[int, Field(ge=1, le=64)] = Field(1, description="embedding vectors of each new token")
    init_word: str | None = Field(None, description="word whose embedding a new token starts from (random)")
    token_lr: Rate | None = Field(None, description="peak learning rate of new tokens, beside an adapter (that of new tokens alone)")
    token_until: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        1.0, description="share of the steps after which new tokens stay as they are"
    )

    @property
    def adapts(self) -> bool:
        """Whether an adapter trains."""
        return self.kind in ROWS


# Learning rates where none is given. Those of the embedded base were measured (docs/adapters.md, docs/methods.md): it is small, and learns
# at higher ones than the others, whose are those of the field. An adapter's is that of LoRA times its row's factor. A decoder's is that of
# latent diffusion's autoencoders, 4.5e-6 for each picture of a step (CompVis/latent-diffusion, configs/autoencoder), of which there are 4.
RATES = {"lora": 2e-4, "full": 1e-5, "none": 5e-3, "decoder": 2e-5}
EMBEDDED, EMBEDDED_RATES = TINY.name, {"lora": 1.5e-3, "full": 2e-4, "none": 1e-2, "decoder": 3e-4}


def trained(settings: Mapping[str, Any]) -> tuple[str, str, str]:
    """What trains, by which optimizer, on which base, in settings that are not checked yet: what is wrong with them is said later."""

    def said(section: str, key: str, usual: str) -> str:
        value = settings.get(section)
        return str(value.get(key, usual)) if isinstance(value, Mapping) else usual

    return said("method", "kind", "lora"), said("optim", "optimizer", "adamw"), said("model", "base", EMBEDDED)


def usual_rate(kind: str, optimizer: str, base: str) -> float:
    """The learning rate of what trains, where none is given; of Prodigy, a multiple of the one that it finds."""
    row = OPTIMIZERS.get(optimizer, OPTIMIZERS["adamw"])  # an unknown one is refused later
    if row.one_rate:
        return 1.0
    rates = EMBEDDED_RATES if embedded(base) else RATES
    factor = ROWS[kind].rate if kind in ROWS else 1.0
    return float(f"{rates.get(kind, rates['lora']) * factor * row.rate:.3g}")
