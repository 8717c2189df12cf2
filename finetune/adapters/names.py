"""What one module is called: by diffusers, by the original Stable Diffusion XL and FLUX.1 code, and by kohya's flat keys.

Parts are diffusers' folders (`unet`, `transformer`, `text_encoder`, `text_encoder_2`), modules are diffusers' dotted names;
CLIP's always begin with `text_model.`, which newer versions of transformers leave out and every reader expects.
A table belongs to a family, and `known` tells whether a family has a module at all.
"""

import re

# Names with an underscore of their own: without them a flat key could not be told apart again.
WORDS = """
down_blocks up_blocks mid_block transformer_blocks single_transformer_blocks to_q to_k to_v to_out to_add_out add_q_proj add_k_proj
add_v_proj proj_in proj_out proj_mlp ff_context norm1_context norm_out x_embedder context_embedder time_text_embed timestep_embedder
text_embedder guidance_embedder linear_1 linear_2 conv_in conv_out conv_shortcut time_emb_proj time_embedding add_embedding conv_norm_out
norm_q norm_k norm_added_q norm_added_k query_norm key_norm text_model
self_attn q_proj k_proj v_proj out_proj final_layer_norm layer_norm1 layer_norm2 token_embedding position_embedding text_projection
wi_0 wi_1 layer_norm double_blocks single_blocks img_attn txt_attn img_mlp txt_mlp img_mod txt_mod img_in txt_in time_in vector_in
guidance_in in_layer out_layer final_layer adaLN_modulation input_blocks middle_block output_blocks in_layers out_layers emb_layers
skip_connection time_embed label_emb
""".split()
_WORD = re.compile(rf"(?:(?<=_)|^)(?:{'|'.join(sorted(WORDS, key=len, reverse=True))})(?=_|$)")


def flat(module: str) -> str:
    return module.replace(".", "_")


def dotted(flat: str) -> str:
    """`down_blocks_0_attentions_1_proj_in` -> `down_blocks.0.attentions.1.proj_in`; right for every module of the known networks."""
    return _WORD.sub(lambda m: m[0].replace("_", "\0"), flat).replace("_", ".").replace("\0", "_")


# The original U-Nets: levels of two layers on the way down and three on the way up, four of them in Stable Diffusion 1 and 2, three in
# XL. Both number alike; only the up-sampler of a level without attention stands one place earlier.

_LEAVES = {
    "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    "norm1": "in_layers.0", "norm2": "out_layers.0",
}  # fmt: skip
_ALONE = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def _blocks(levels: int) -> dict[str, str]:
    """diffusers' prefix -> the original one."""
    out = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2"}
    for i in range(levels):
        for j in range(2):
            out[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{3 * i + j + 1}.0"
            out[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{3 * i + j + 1}.1"
        for j in range(3):
            out[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{3 * i + j}.0"
            out[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{3 * i + j}.1"
        if i < levels - 1:
            out[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{3 * i + 3}.0.op"
            out[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{3 * i + 2}.2.conv"
    return out


_TO_XL = _blocks(3)
_FROM_UNET = {v: k for k, v in _blocks(4).items()} | {
    f"output_blocks.{3 * i + 2}.1.conv": f"up_blocks.{i}.upsamplers.0.conv" for i in range(3)
}  # fmt: skip


def _translate(module: str, blocks: dict[str, str], leaves: dict[str, str], alone: dict[str, str]) -> str | None:
    if module in alone:
        return alone[module]
    for depth in (5, 4, 3, 2):
        head, rest = ".".join(module.split(".")[:depth]), module.split(".")[depth:]
        if head in blocks:
            tail = ".".join(rest)
            return ".".join(x for x in (blocks[head], leaves.get(tail, tail)) if x)
    return None


def to_xl(module: str) -> str | None:
    """diffusers' name of a U-Net module -> the original one; None where there is none."""
    return _translate(module, _TO_XL, _LEAVES, _ALONE)


def from_unet(module: str) -> str | None:
    """The original name of a U-Net module, Stable Diffusion's or XL's -> diffusers' one; None where there is none."""
    back = {v: k for k, v in _LEAVES.items()}
    return _translate(module, _FROM_UNET, back, {v: k for k, v in _ALONE.items()})


# FLUX.1: the original code fuses projections that read the same input.

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
_FLUX_ALONE = {
    "img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
}  # fmt: skip

SWAPPED = {"norm_out.linear"}  # diffusers keeps scale and shift, the original shift and scale
_FLUX_BLOCKS = {"transformer_blocks": 19, "single_transformer_blocks": 38}


def from_flux(module: str) -> tuple[str, ...] | None:
    """The original name -> diffusers' names of the projections that it fuses, in the order of its output's rows."""
    kind, _, rest = module.partition(".")
    number, _, leaf = rest.partition(".")
    if kind == "double_blocks" and leaf in _DOUBLE:
        return tuple(f"transformer_blocks.{number}.{m}" for m in _DOUBLE[leaf])
    if kind == "single_blocks" and leaf in _SINGLE:
        return tuple(f"single_transformer_blocks.{number}.{m}" for m in _SINGLE[leaf])
    return _FLUX_ALONE.get(module)


def to_flux(module: str) -> str | None:
    """diffusers' name -> the original module that holds it."""
    parts = module.split(".", 2)
    tables = {"transformer_blocks": ("double_blocks", _DOUBLE), "single_transformer_blocks": ("single_blocks", _SINGLE)}
    if parts[0] in tables and len(parts) == 3:
        kind, table = tables[parts[0]]
        found = next((leaf for leaf, members in table.items() if parts[2] in members), None)
        return f"{kind}.{parts[1]}.{found}" if found else None
    return next((name for name, members in _FLUX_ALONE.items() if module in members), None)


# What a family has at all, in diffusers' names. Of blocks, the most that any of its models has; what one model lacks is found when a file
# is held against its base.

_RESNET = r"resnets\.\d\.(norm1|norm2|conv1|conv2|time_emb_proj|conv_shortcut)"
_BLOCK = r"transformer_blocks\.\d\.(norm[123]|attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))"
_ATTENTION = rf"attentions\.\d\.(norm|proj_in|proj_out|{_BLOCK})"
_UNET = re.compile(
    rf"((down|up)_blocks\.[0-3]|mid_block)\.({_RESNET}|{_ATTENTION})|down_blocks\.[0-3]\.downsamplers\.0\.conv"
    r"|up_blocks\.[0-3]\.upsamplers\.0\.conv|conv_(in|out|norm_out)|(time|add)_embedding\.linear_[12]"
)
_CLIP = re.compile(
    r"text_model\.(encoder\.layers\.\d+\.(self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12]|layer_norm[12])"
    r"|embeddings\.(token|position)_embedding|final_layer_norm)|(text_model\.)?text_projection"
)
_T5 = re.compile(
    r"encoder\.(block\.\d+\.layer\.(0\.SelfAttention\.([qkvo]|relative_attention_bias)|1\.DenseReluDense\.(wi|wi_0|wi_1|wo)|[01]\.layer_norm)"
    r"|final_layer_norm)|shared"
)


def _of_flux(module: str) -> bool:
    block, _, rest = module.partition(".")
    number = rest.partition(".")[0]
    inside = block not in _FLUX_BLOCKS or (number.isdecimal() and int(number) < _FLUX_BLOCKS[block])
    return inside and to_flux(module) is not None


def known(family: str, part: str, module: str) -> bool:
    """Whether any model of the family has the module, in diffusers' names."""
    if part.startswith("text_encoder"):
        text = _T5 if family == "flux" and part == "text_encoder_2" else _CLIP
        return text.fullmatch(module) is not None
    return _of_flux(module) if family == "flux" else _UNET.fullmatch(module) is not None
