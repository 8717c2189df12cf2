"""The modules of U-Nets by diffusers' names and by the original code's, of Stable Diffusion 1, 2 and XL alike. Torch-free.

The original U-Nets have levels of two layers on the way down and three on the way up, four of them in Stable Diffusion 1 and 2, three in
XL. Both number alike; only the up-sampler of a level without attention stands one place earlier.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from finetune.families.names import DENOISER, Layer, Names
from finetune.families.names.readers import (
    BOTH,
    DORA,
    DROPS,
    EXACT,
    LORA,
    LOW_RANK,
    MEASURED_DORA,
    MEASURED_LORA,
    OFT,
    PART,
    UNREAD,
    WRONG,
    Rule,
    rules,
)
from finetune.families.names.text_encoders import CLIP_WORDS

BLOCKS = ("input_blocks.", "output_blocks.", "middle_block.", "down_blocks.", "up_blocks.", "mid_block.")
BEGINNINGS = ("down_blocks.", "up_blocks.", "mid_block.", "conv_", "time_embedding.", "add_embedding.")
WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out", "linear_1",
    "linear_2", "conv_in", "conv_out", "conv_shortcut", "time_emb_proj", "time_embedding", "add_embedding", "conv_norm_out",
    "input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers", "skip_connection", "time_embed", "label_emb",
    *CLIP_WORDS,
)  # fmt: skip
STABILITY = "https://github.com/Stability-AI/generative-models"
OUTER = ("conv_in", "conv_out", "time_embedding.", "add_embedding.")
CROSS = (".attn2.to_k", ".attn2.to_v")  # what reads the text, whose width tells the models apart
_LEAVES = {
    "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    "norm1": "in_layers.0", "norm2": "out_layers.0",
}  # fmt: skip
_ALONE = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def blocks(levels: int, resnets: int = 2, attentive: Collection[int] | None = None) -> dict[str, str]:
    """diffusers' prefix -> the original one, of levels with `resnets` layers on the way down and one more on the way up.

    `attentive` are the levels on the way up that have attention; None: all of them.
    """
    per = resnets + 1
    out = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2"}
    for i in range(levels):
        for j in range(resnets):
            out[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{per * i + j + 1}.0"
            out[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{per * i + j + 1}.1"
        for j in range(per):
            out[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{per * i + j}.0"
            out[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{per * i + j}.1"
        if i < levels - 1:
            place = 2 if attentive is None or i in attentive else 1
            out[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{per * (i + 1)}.0.op"
            out[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{per * i + resnets}.{place}.conv"
    return out


def _back(table: Mapping[str, str]) -> dict[str, str]:
    return {original: module for module, original in table.items()}


_FROM_BLOCKS = _back(blocks(4)) | _back(blocks(4, attentive=()))
_FROM_LEAVES, _FROM_ALONE = _back(_LEAVES), _back(_ALONE)


def _translate(module: str, heads: Mapping[str, str], leaves: Mapping[str, str], alone: Mapping[str, str]) -> str | None:
    if module in alone:
        return alone[module]
    for depth in (5, 4, 3, 2):
        head, rest = ".".join(module.split(".")[:depth]), module.split(".")[depth:]
        if head in heads:
            tail = ".".join(rest)
            return ".".join(x for x in (heads[head], leaves.get(tail, tail)) if x)
    return None


def original(module: str, heads: Mapping[str, str]) -> str | None:
    """diffusers' name of a module -> the original one; `heads` are those of `blocks`."""
    return _translate(module, heads, _LEAVES, _ALONE)


def members(module: str) -> tuple[str, ...] | None:
    """The original name of a module, whichever U-Net's -> diffusers' one: nothing is fused."""
    back = _translate(module, _FROM_BLOCKS, _FROM_LEAVES, _FROM_ALONE)
    return (back,) if back else None


# Of blocks, the most that any of the models has; what one lacks is seen when a file is held against its base.
_RESNET = r"resnets\.\d\.(norm1|norm2|conv1|conv2|time_emb_proj|conv_shortcut)"
_BLOCK = r"transformer_blocks\.\d\.(norm[123]|attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))"
_ATTENTION = rf"attentions\.\d\.(norm|proj_in|proj_out|{_BLOCK})"
_MODULES = re.compile(
    rf"((down|up)_blocks\.[0-3]|mid_block)\.({_RESNET}|{_ATTENTION})|down_blocks\.[0-3]\.downsamplers\.0\.conv"
    r"|up_blocks\.[0-3]\.upsamplers\.0\.conv|conv_(in|out|norm_out)|(time|add)_embedding\.linear_[12]"
)


def holds(module: str) -> bool:
    return _MODULES.fullmatch(module) is not None


def alike(layers: Sequence[Layer]) -> bool:
    """Whether the denoiser's layers could be a U-Net's, by how their names begin."""
    return all(layer.module.startswith(BEGINNINGS) for layer in layers if layer.part == DENOISER)


def text_width(layers: Sequence[Layer]) -> int:
    """Of what the first cross-attention in a file reads; 0 where none tells."""
    widths = (layer.inputs for layer in layers if layer.part == DENOISER and layer.module.endswith(CROSS))
    return next((width for width in widths if width), 0)


_AXIS = "takes DoRA's norms along the other axis: 7 to 9 times the whole change"
_THIRD = "maps a third of these keys: 67 to 75 % of the effect is lost"
_SWAPS = "but 9 % off where files are swapped in place (hotswap)"
RULES = rules(
    *MEASURED_DORA,
    Rule(("InvokeAI", "A1111"), WRONG, ("kohya",), DORA, _AXIS),
    Rule(("sd-scripts",), WRONG, ("kohya",), DORA, DROPS),
    Rule(("diffusers",), WRONG, ("kohya",), DORA, f"{DROPS} in this layout"),
    Rule(("sd-scripts",), PART, ("kohya",), outer=True, says="leaves conv_in, conv_out, time and label embeddings out"),
    Rule(("diffusers",), EXACT, ("kohya",), LORA, _SWAPS, mixed=True),
    Rule((*BOTH, "SD.Next", "InvokeAI", "sd-scripts", "LyCORIS"), EXACT, ("kohya",)),
    Rule(BOTH, PART, ("diffusers", "peft"), LOW_RANK, _THIRD),
    Rule(("InvokeAI",), UNREAD, ("diffusers", "peft"), LOW_RANK, "knows kohya's keys alone for these families"),
    MEASURED_LORA,
    oft=(Rule(("LyCORIS",), EXACT, ("kohya",), OFT),),
)

# What the families of U-Nets have in common; each adds the rest.
names = partial(
    Names,
    denoiser="unet",
    layout="kohya",
    blocks=BLOCKS,
    beginnings=BEGINNINGS,
    words=WORDS,
    holds=holds,
    members=members,
    telling=CROSS,
    outer=OUTER,
    rules=RULES,
    one_alpha=True,
)
