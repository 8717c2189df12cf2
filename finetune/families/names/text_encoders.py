"""The modules of text encoders, and what files call them. Torch-free."""

import re

from finetune.families.names import TextNames

_CLIP_PREFIX = "text_model."  # which newer versions of transformers leave out, and every reader expects
_CLIP = re.compile(
    r"text_model\.(encoder\.layers\.\d+\.(self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12]|layer_norm[12])"
    r"|embeddings\.(token|position)_embedding|final_layer_norm)|(text_model\.)?text_projection"
)
_T5 = re.compile(
    r"encoder\.(block\.\d+\.layer\.(0\.SelfAttention\.([qkvo]|relative_attention_bias)|1\.DenseReluDense\.(wi|wi_0|wi_1|wo)|[01]\.layer_norm)"
    r"|final_layer_norm)|shared"
)
CLIP_WORDS = (
    "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "final_layer_norm", "layer_norm1", "layer_norm2",
    "token_embedding", "position_embedding", "text_projection",
)  # fmt: skip
T5_WORDS = ("wi_0", "wi_1", "layer_norm", "final_layer_norm")


def clip(key: str, kohya: str, *comfy: str) -> TextNames:
    return TextNames(key, kohya, comfy, _CLIP, _CLIP_PREFIX, ("text_projection",))


def bare(module: str) -> str:
    """Without the `text_model.` of CLIP's names, as newer versions of transformers have them."""
    return module.removeprefix(_CLIP_PREFIX)


def t5(key: str, kohya: str, *comfy: str) -> TextNames:
    return TextNames(key, kohya, comfy, _T5)
