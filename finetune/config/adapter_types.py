"""The adapter types, one row each over PEFT's. Torch-free: the command line reads it too."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from finetune.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Settings = dict[str, Any]


class Chosen(Protocol):
    """What an adapter type looks at of the settings in config/method.py."""

    @property
    def rank(self) -> int: ...
    @property
    def targets(self) -> str: ...
    @property
    def init(self) -> str: ...
    @property
    def dropout(self) -> float: ...
    @property
    def factor(self) -> int: ...


def anything(method: Chosen, layer: str, shape: Sequence[int]) -> None:
    """A type that adapts every linear and convolution layer."""


def addition(weight: "Tensor", delta: "Tensor") -> "Tensor":
    return delta


@dataclass(frozen=True)
class AdapterType:
    """An adapter type: PEFT's config for it, and what its layers call the tensors that a file holds.

    `tensors` maps the names in `adapters/weights.py` to PEFT's attributes; without any, the change of the weight itself is written, which
    `change` makes of the weight and what PEFT calls its delta. `folded` names the tensors of which the one that is there takes the
    strength, so that a file's alpha is its rank. `check` refuses, with a ConfigError, a layer whose weight's shape the type cannot adapt.
    `begin` names the function in beginnings.py by which it goes on from files of the kinds in `after` that are not its own, and `made`
    maps what that gives to PEFT's attributes, where these are not `tensors`.
    """

    about: str
    config: str  # class in peft
    settings: Callable[[Chosen], Settings]  # its arguments, beside the layers and their ranks
    file: str = ""  # kind of the written weights
    tensors: Mapping[str, str] = field(default_factory=dict)
    folded: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset()  # settings that mean something for it, beside rank and targets
    lycoris: Mapping[str, str] | None = None  # LyCORIS's arguments, where it is one of its types to other tools
    note: str = ""  # what is to be said of its file
    begin: str = ""
    after: frozenset[str] = frozenset()
    made: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Chosen, str, Sequence[int]], None] = anything
    change: Callable[["Tensor", "Tensor"], "Tensor"] = addition
    rate: float = 1.0  # usual learning rate, as a multiple of LoRA's (docs/adapters.md)

    @property
    def low_rank(self) -> bool:
        """Whether the file holds LoRA or DoRA, which every layout has a place for."""
        return self.file in ("lora", "dora")

    def names(self, tensor: str, parameter: str) -> bool:
        """Whether PEFT's parameter of this name is that tensor of ours."""
        return f".{self.tensors.get(tensor)}." in parameter


RANKED = frozenset({"alpha", "rank_pattern", "alpha_pattern", "dropout", "start"})
PAIR = {"down": "lora_A", "up": "lora_B"}
LOHA = {"w1_a": "hada_w1_a", "w1_b": "hada_w1_b", "w2_a": "hada_w2_a", "w2_b": "hada_w2_b"}
LOKR = {"k1": "lokr_w1", "k1_a": "lokr_w1_a", "k1_b": "lokr_w1_b", "k2": "lokr_w2", "k2_a": "lokr_w2_a", "k2_b": "lokr_w2_b"}
INITS: dict[str, bool | str] = {"default": True, "gaussian": "gaussian", "orthogonal": "orthogonal", "pissa": "pissa", "olora": "olora"}


def _lora(m: Chosen) -> Settings:
    return {"lora_dropout": m.dropout, "init_lora_weights": INITS[m.init]}


def _blocks(m: Chosen, layer: str, shape: Sequence[int]) -> None:
    inputs, size = prod(shape[1:]), m.rank
    if size < 2:
        raise ConfigError("--rank 1: OFT turns blocks of so many inputs, and one alone cannot be turned", "--rank 4 or more")
    if prod(shape[2:]) > 1:  # PEFT (0.21) turns overlapping patches: no weight does the same
        raise ConfigError(f"method.targets {m.targets}: OFT cannot adapt the convolution {layer}", "--targets all-linear")
    if inputs % size:
        near = ", ".join(str(b) for b in range(2, min(inputs, 4 * size) + 1) if inputs % b == 0)
        raise ConfigError(f"--rank {size}: OFT turns blocks of so many inputs, and {layer} has {inputs}", f"one of {near}")


def _turned(weight: "Tensor", turn: "Tensor") -> "Tensor":
    """W R - W."""
    return (weight.flatten(1) @ turn.T).view_as(weight) - weight


ROWS = {
    "lora": AdapterType(  # Hu et al. 2021, arXiv:2106.09685
        "low-rank update, strength alpha / rank",
        "LoraConfig",
        _lora,
        file="lora",
        tensors=PAIR,
        folded=("up",),
        takes=RANKED | {"init", "max_norm", "lora_plus"},
        begin="low_rank",
        after=frozenset({"full"}),
    ),
    "rslora": AdapterType(  # Kalajdzievski 2023, arXiv:2312.03732
        "LoRA with the strength alpha / sqrt(rank)",
        "LoraConfig",
        lambda m: {**_lora(m), "use_rslora": True},
        file="lora",
        tensors=PAIR,
        folded=("up",),
        takes=RANKED | {"init", "max_norm", "lora_plus"},
        begin="low_rank",
        after=frozenset({"full"}),
    ),
    "dora": AdapterType(  # Liu et al. 2024, arXiv:2402.09353
        "LoRA of the direction, and a norm for each row",
        "LoraConfig",
        lambda m: {**_lora(m), "use_dora": True},
        file="dora",
        tensors={**PAIR, "rows": "lora_magnitude_vector"},
        folded=("up",),
        takes=RANKED | {"lora_plus"},
        lycoris={"algo": "lora", "dora_wd": "True"},
        begin="decomposed",
        after=frozenset({"lora", "full"}),
    ),
    "loha": AdapterType(  # Hyeon-Woo et al. 2021, arXiv:2108.06098
        "elementwise product of two low-rank matrices",
        "LoHaConfig",
        lambda m: {"rank_dropout": m.dropout},
        file="loha",
        tensors=LOHA,
        folded=("w1_a",),
        takes=RANKED | {"max_norm"},
        lycoris={"algo": "loha"},
        rate=3.0,
    ),
    "lokr": AdapterType(  # Yeh et al. 2023, arXiv:2309.14859
        "Kronecker product of a small and a low-rank matrix",
        "LoKrConfig",
        lambda m: {"rank_dropout": m.dropout, "rank_dropout_scale": True, "decompose_factor": m.factor},
        file="lokr",
        tensors=LOKR,
        folded=("k1", "k1_a"),
        takes=RANKED | {"max_norm", "factor"},
        lycoris={"algo": "lokr"},
        rate=3.0,
    ),
    "oft": AdapterType(  # Qiu et al. 2023, arXiv:2306.07280
        "rotation of the inputs in blocks of `rank`; the file holds whole differences",
        "OFTConfig",
        # PEFT's usual series of five terms is no rotation any more where it turns far.
        lambda m: {"oft_block_size": m.rank, "module_dropout": m.dropout, "use_cayley_neumann": False},
        file="full",
        takes=frozenset({"dropout", "start"}),
        lycoris={"algo": "full"},
        note="no common layout holds the rotations of oft; the file will hold whole differences, as large as the adapted weights",
        check=_blocks,
        change=_turned,
        begin="rotation",
        after=frozenset({"full"}),
        made={"turn": "oft_R"},
    ),
}
OPTIONS = frozenset().union(*(row.takes for row in ROWS.values()))
