"""Names in files of FLUX.1, whose original code fuses projections that read the same input. Torch-free."""

import re
from collections.abc import Mapping, Sequence

from finetune.families.names import DENOISER, Layer, Names, Spelling
from finetune.families.names.readers import (
    BOTH,
    DORA,
    DROPS,
    EXACT,
    LORA,
    LYCORIS,
    MEASURED_DORA,
    MEASURED_LORA,
    PART,
    UNREAD,
    WRONG,
    Rule,
    rules,
)
from finetune.families.names.text_encoders import CLIP_WORDS, T5_WORDS, clip, t5

CODE = "https://github.com/black-forest-labs/flux"
WIDTH = 3072  # of the model
COUNTS = {"transformer_blocks": 19, "single_transformer_blocks": 38}  # of its blocks
_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_ALONE = {
    "img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
}  # fmt: skip


def _holders(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """diffusers' module -> the original one that holds it."""
    out: dict[str, str] = {}
    for holder, modules in table.items():
        out |= dict.fromkeys(modules, holder)
    return out


_ORIGINAL = {"transformer_blocks": ("double_blocks", _holders(_DOUBLE)), "single_transformer_blocks": ("single_blocks", _holders(_SINGLE))}
_ORIGINAL_ALONE = _holders(_ALONE)


def members(module: str) -> tuple[str, ...] | None:
    """The original name -> diffusers' names of the projections that it fuses, in the order of its output's rows."""
    kind, _, rest = module.partition(".")
    number, _, leaf = rest.partition(".")
    if kind == "double_blocks" and leaf in _DOUBLE:
        return tuple(f"transformer_blocks.{number}.{m}" for m in _DOUBLE[leaf])
    if kind == "single_blocks" and leaf == "qkv":  # XLabs' name for the first three of four
        return tuple(f"single_transformer_blocks.{number}.{m}" for m in _SINGLE["linear1"][:3])
    if kind == "single_blocks" and leaf in _SINGLE:
        return tuple(f"single_transformer_blocks.{number}.{m}" for m in _SINGLE[leaf])
    return _ALONE.get(module)


def original(module: str) -> str | None:
    """diffusers' name -> the original module that holds it."""
    kind, _, rest = module.partition(".")
    number, _, leaf = rest.partition(".")
    if kind in _ORIGINAL and leaf:
        block, holders = _ORIGINAL[kind]
        return f"{block}.{number}.{holders[leaf]}" if leaf in holders else None
    return _ORIGINAL_ALONE.get(module)


def holds(module: str) -> bool:
    block, _, rest = module.partition(".")
    number = rest.partition(".")[0]
    inside = block not in COUNTS or (number.isdecimal() and int(number) < COUNTS[block])
    return inside and original(module) is not None


def row_share(module: str) -> int:
    """Attention projections are square, the feed-forward is four times as wide."""
    return 4 if module.endswith("proj_mlp") else 1


def _turned(module: str, outputs: int, inputs: int) -> bool:
    """diffusers keeps scale and shift, the original shift and scale."""
    return module == "norm_out.linear"


_XLABS = re.compile(r"^(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight$")


def usual_key(key: str) -> str:
    """XLabs' keys as those of the original code."""
    m = _XLABS.match(key)
    if not m:
        return key
    size, number, what, side, leaf = m.groups()
    if size == "double":
        return f"double_blocks.{number}.{'txt' if side == '2' else 'img'}_attn.{what}.lora.{leaf}.weight"
    return f"single_blocks.{number}.{'qkv' if what == 'qkv' else 'linear2'}.lora.{leaf}.weight"


def _alone(layer: Layer) -> bool:
    """Whether a layer stands under an original name that it alone has; the last ones, Stable Diffusion 3 calls so too."""
    return layer.original and holds(layer.module) and (layer.inputs == WIDTH or not layer.module.startswith(("norm_out.", "proj_out")))


def recognises(layers: Sequence[Layer]) -> bool:
    """By names that it alone has; of the many transformers with the others, the one of this width that has them all."""
    denoiser = [layer for layer in layers if layer.part == DENOISER]
    if any(layer.module.startswith("single_transformer_blocks.") or _alone(layer) for layer in denoiser):
        return True
    inner = {layer.inputs for layer in denoiser if layer.module.startswith("transformer_blocks.")}
    return WIDTH in inner and all(holds(layer.module) for layer in denoiser)


# In kohya's layout LoRA stands under the original names, other kinds as lycoris_ and diffusers' names.
_RULES = rules(
    *MEASURED_DORA,
    Rule(("InvokeAI", "sd-scripts"), UNREAD, ("kohya",), DORA | LYCORIS, "knows no key of the kind lycoris_"),
    Rule(("ComfyUI",), WRONG, ("diffusers",), DORA, f"{DROPS}: 20 % of the change is off"),
    Rule(("diffusers",), PART, ("kohya",), LORA, "leaves the last layers, norm_out and proj_out, out", outer=True),
    Rule((*BOTH, "SD.Next", "LyCORIS"), EXACT, ("kohya",), LYCORIS),
    Rule(("LyCORIS",), UNREAD, ("kohya",), says="knows the original model's names by another implementation alone"),
    Rule((*BOTH, "SD.Next", "InvokeAI", "sd-scripts"), EXACT, ("kohya",), LORA),
    Rule((*BOTH, "SD.Next", "InvokeAI", "SGLang"), EXACT, ("diffusers",), LORA),
    MEASURED_LORA,
)

NAMES = Names(
    denoiser="transformer",
    layout="diffusers",
    text={"text_encoder": clip("clip_l", "lora_te1", "clip_l"), "text_encoder_2": t5("t5xxl", "lora_te3", "t5xxl")},  # kohya's T5 is 3
    blocks=("double_blocks.", "single_blocks.", "transformer_blocks.", "single_transformer_blocks."),
    beginnings=(
        "transformer_blocks.", "single_transformer_blocks.", "proj_out", "x_emb", "context_", "norm_out", "time_text_embed.",
    ),
    words=(
        "transformer_blocks", "single_transformer_blocks", "to_q", "to_k", "to_v", "to_out", "to_add_out", "add_q_proj", "add_k_proj",
        "add_v_proj", "proj_out", "proj_mlp", "ff_context", "norm1_context", "norm_out", "x_embedder", "context_embedder",
        "time_text_embed", "timestep_embedder", "text_embedder", "guidance_embedder", "linear_1", "linear_2", "norm_q", "norm_k",
        "norm_added_q", "norm_added_k", "query_norm", "key_norm", "double_blocks", "single_blocks", "img_attn", "txt_attn", "img_mlp",
        "txt_mlp", "img_mod", "txt_mod", "img_in", "txt_in", "time_in", "vector_in", "guidance_in", "in_layer", "out_layer",
        "final_layer", "adaLN_modulation", *CLIP_WORDS, *T5_WORDS,
    ),
    holds=holds,
    original=original,
    members=members,
    recognises=recognises,
    lora=Spelling("lora_unet", original=True),
    lycoris=Spelling("lycoris", original=False),  # only plain LoRA survives fusing: diffusers' names, as SimpleTuner writes LyCORIS's
    known=("flux-dev",),
    telling=(".attn.to_q", ".attn.add_q_proj", ".proj_mlp", ".ff_context.net.0.proj"),
    outer=("norm_out.", "proj_out"),
    rules=_RULES,
    tags=("flux", "flux-diffusers"),
    codes={"adapter": CODE, "embedding": CODE, "model": CODE},
    share=row_share,
    swapped=_turned,
    usual_key=usual_key,
)  # fmt: skip
