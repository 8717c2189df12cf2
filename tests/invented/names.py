"""Names in files of Quill: its own code calls a block's attention `look`, with queries, keys and values in one matrix."""

import re
from collections.abc import Sequence

from finetune.families.names import DENOISER, Layer, Names, Spelling, TextNames
from finetune.families.names.readers import rules

# diffusers' name within a block -> the original's; several of diffusers' may be one of the original's, in the order of its rows.
_FUSED = {"look.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v")}
_ALONE = {"look.proj": "attn1.to_out.0", "think.up": "ff.net.0.proj", "think.down": "ff.net.2"}
_MEMBERS = {**_FUSED, **{theirs: (ours,) for theirs, ours in _ALONE.items()}}
_ORIGINAL = {ours: theirs for theirs, members in _MEMBERS.items() for ours in members}
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
_THEIRS = re.compile(r"quills\.(\d+)\.(.+)")


def holds(module: str) -> bool:
    """Whether any model of the family has such a layer, by diffusers' name."""
    return original(module) is not None


def original(module: str) -> str | None:
    """diffusers' name -> the original one."""
    block = _BLOCK.fullmatch(module)
    if block is None or block[2] not in _ORIGINAL:
        return None
    return f"quills.{block[1]}.{_ORIGINAL[block[2]]}"


def members(module: str) -> tuple[str, ...] | None:
    """The original name -> diffusers' ones."""
    block = _THEIRS.fullmatch(module)
    if block is None or block[2] not in _MEMBERS:
        return None
    return tuple(f"transformer_blocks.{block[1]}.{member}" for member in _MEMBERS[block[2]])


def recognises(layers: Sequence[Layer]) -> bool:
    """By the original's names, which no other family has. diffusers' names are those of many transformers: files in that layout are
    told by their header, or by --family."""
    return bool(layers) and all(layer.part == DENOISER and layer.original and holds(layer.module) for layer in layers)


NAMES = Names(
    denoiser="transformer",
    layout="diffusers",  # where no --format is given: one that diffusers and ComfyUI both read
    text={"text_encoder": TextNames("glm", "lora_glm", ("glm",), re.compile(r"layers\.\d+\..+"))},
    blocks=("quills.",),
    beginnings=("transformer_blocks.",),
    # Names with an underscore, so that a flat key can be told apart again.
    words=("transformer_blocks", "to_q", "to_k", "to_v", "to_out"),
    holds=holds,
    original=original,
    members=members,
    recognises=recognises,
    lora=Spelling("lora_quill", original=True),  # the word of its tools for its denoiser
    lycoris=Spelling("lycoris_quill", original=False),
    known=(),
    telling=(),
    outer=(),
    rules=rules(),  # who reads its files: nothing is known but what holds for all families
    tags=("quill",),
)
