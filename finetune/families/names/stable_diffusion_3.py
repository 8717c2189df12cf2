"""Names in files of Stable Diffusion 3 and 3.5, whose original code fuses queries, keys and values. Torch-free."""

import re
from collections.abc import Sequence

from finetune.families.names import DENOISER, Layer, Names, Spelling
from finetune.families.names.readers import DORA, EXACT, LORA, LYCORIS, UNREAD, Rule, rules
from finetune.families.names.text_encoders import CLIP_WORDS, T5_WORDS, clip, t5
from finetune.families.names.unet import STABILITY

BLOCKS = {1536: 24, 2432: 38}  # how many a model has, by its width: both mediums, and large
# The original's module within a block -> diffusers', in the order of the original's rows.
_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
_IN_BLOCK = {
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
}
_ALONE = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_MEMBERS = {**_FUSED, **{theirs: (ours,) for theirs, ours in _IN_BLOCK.items()}}
_ORIGINAL = {ours: theirs for theirs, members in _MEMBERS.items() for ours in members}
_ORIGINAL_ALONE = {ours: theirs for theirs, ours in _ALONE.items()}
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
_THEIRS = re.compile(r"joint_blocks\.(\d+)\.(.+)")


def members(module: str) -> tuple[str, ...] | None:
    """The original name -> diffusers' names of the projections that it fuses, in the order of its output's rows."""
    block = _THEIRS.fullmatch(module)
    if block is None:
        return (_ALONE[module],) if module in _ALONE else None
    inside = _MEMBERS.get(block[2])
    return tuple(f"transformer_blocks.{block[1]}.{member}" for member in inside) if inside else None


def original(module: str) -> str | None:
    """diffusers' name -> the original module that holds it."""
    block = _BLOCK.fullmatch(module)
    if block is None:
        return _ORIGINAL_ALONE.get(module)
    return f"joint_blocks.{block[1]}.{_ORIGINAL[block[2]]}" if block[2] in _ORIGINAL else None


def holds(module: str) -> bool:
    """In the largest of its models."""
    block = _BLOCK.fullmatch(module)
    return original(module) is not None and (block is None or int(block[1]) < max(BLOCKS.values()))


def _turned(module: str, outputs: int, inputs: int) -> bool:
    """diffusers keeps scale and shift, the original shift and scale: of the last norm, and of the text's in the last block, which has
    these two where the other blocks' have six."""
    if module == "norm_out.linear":
        return True
    last = outputs == 2 * inputs if inputs else outputs in {2 * width for width in BLOCKS}
    return module.endswith(".norm1_context.linear") and last


def recognises(layers: Sequence[Layer]) -> bool:
    """By the original's blocks, which no other family has; of the many transformers with diffusers' names, by a width of its models and
    no more blocks than they have."""
    denoiser = [layer for layer in layers if layer.part == DENOISER]
    if not all(holds(layer.module) for layer in denoiser):
        return False
    inside = [layer for layer in denoiser if layer.module.startswith("transformer_blocks.")]
    if any(layer.original for layer in inside):
        return True
    width = next((layer.inputs for layer in inside if layer.inputs in BLOCKS), None)
    return width is not None and all(int(layer.module.split(".")[1]) < BLOCKS[width] for layer in inside)


# In kohya's layout LoRA stands under the original names, other kinds as lycoris_ and diffusers' names, as SimpleTuner writes them.
_RULES = rules(
    Rule(("diffusers",), UNREAD, ("kohya",), LORA, "knows no key of kohya's for this family, and loads nothing of it"),
    Rule(("LyCORIS",), EXACT, ("kohya",), DORA | LYCORIS),
    Rule(("LyCORIS",), UNREAD, ("kohya",), says="knows the original model's names by another implementation alone"),
)

NAMES = Names(
    denoiser="transformer",
    layout="diffusers",
    text={
        "text_encoder": clip("clip_l", "lora_te1", "clip_l"),
        "text_encoder_2": clip("clip_g", "lora_te2", "clip_g"),
        "text_encoder_3": t5("t5xxl", "lora_te3", "t5xxl"),
    },
    blocks=("joint_blocks.", "transformer_blocks."),
    beginnings=("transformer_blocks.", "pos_embed.", "context_embedder", "time_text_embed.", "norm_out", "proj_out"),
    words=(
        "transformer_blocks", "to_q", "to_k", "to_v", "to_out", "to_add_out", "add_q_proj", "add_k_proj", "add_v_proj", "norm_q", "norm_k",
        "norm_added_q", "norm_added_k", "ff_context", "norm1_context", "norm_out", "proj_out", "pos_embed", "context_embedder",
        "time_text_embed", "timestep_embedder", "text_embedder", "linear_1", "linear_2", "joint_blocks", "x_block", "context_block", "ln_q",
        "ln_k", "adaLN_modulation", "x_embedder", "t_embedder", "y_embedder", "final_layer", *CLIP_WORDS, *T5_WORDS,
    ),
    holds=holds,
    original=original,
    members=members,
    recognises=recognises,
    lora=Spelling("lora_unet", original=True),
    lycoris=Spelling("lycoris", original=False),
    known=("sd35-medium", "sd3-medium", "sd35-large"),
    telling=(".attn.to_q", ".attn.add_q_proj", ".attn2.to_q"),
    outer=("pos_embed.", "context_embedder", "time_text_embed.", "norm_out.", "proj_out"),
    rules=_RULES,
    tags=("stable-diffusion-3", "sd3", "sd3-diffusers"),
    codes={"adapter": "diffusers", "embedding": STABILITY, "model": STABILITY},
    swapped=_turned,
)  # fmt: skip
