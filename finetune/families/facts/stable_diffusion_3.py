"""Stable Diffusion 3 medium, 3.5 medium and 3.5 large."""

from finetune.families.names.stable_diffusion_3 import BLOCKS, NAMES
from finetune.families.spec import (
    JOINT_ATTENTION,
    JOINT_FEED_FORWARD,
    T5_TOKENIZER,
    Component,
    Configs,
    Edition,
    FamilySpec,
    KnownBase,
    Original,
    Shapes,
    TextEncoder,
    pixels_per_latent,
)

# Of T5, by the pipeline's default; its zeros stand in for a T5 that is not there. CLIP reads 77 beside it.
WINDOW = 256
MEDIUM, LARGE = BLOCKS  # widths


def _edition(base: Configs) -> Edition:
    """3.5 norms queries and keys, and its medium attends twice in the first blocks. Steps and guidance are of the models' own cards."""
    config = base.config("transformer")
    side = int(config["sample_size"]) * pixels_per_latent(base)
    longest = int(config["pos_embed_max_size"]) * int(config["patch_size"]) * pixels_per_latent(base)
    if not config.get("qk_norm"):
        use = 28, 7.0, "3-medium"
    elif config.get("dual_attention_layers"):
        use = 40, 4.5, "3-5-medium"
    else:
        use = 28, 3.5, "3-5-large"
    steps, guidance, model = use  # sd-scripts' name of the model, which it puts behind the family's
    return Edition(side, steps, guidance, f"stable-diffusion-3-{model}", model, windows={"text_encoder_3": WINDOW}, longest=longest)


PREFIX, QUERIES = "model.diffusion_model.", "joint_blocks.0.x_block.{}.qkv.weight"

# As they are published beside the transformer and the autoencoder.
_FILES = {
    "text_encoder": ("clip_l.safetensors",),
    "text_encoder_2": ("clip_g.safetensors",),
    "text_encoder_3": ("t5xxl_fp16.safetensors", "t5xxl_fp8_e4m3fn.safetensors"),
}


def _recognise(shapes: Shapes) -> Original | str | None:
    """By a block that it alone has, with the prefix of a whole checkpoint or without: its width, and whether it attends twice."""
    for prefix in ("", PREFIX):
        if (probe := prefix + QUERIES.format("attn")) in shapes:
            width = shapes[probe][1]
            medium = "sd35-medium" if prefix + QUERIES.format("attn2") in shapes else "sd3-medium"
            known = {MEDIUM: medium, LARGE: "sd35-large"}
            text = {part: f"text_encoders.{names.comfy[0]}." for part, names in NAMES.text.items()}
            return Original(known[width], probe, text, _FILES) if width in known else f"whose blocks are {width} wide"
    return None


def _telling(base: Configs) -> Shapes:
    config = base.config("transformer")
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    attentions = ("attn", "attn2") if config.get("dual_attention_layers") else ("attn",)
    return {PREFIX + QUERIES.format(name): (3 * width, width) for name in attentions}


SPEC = FamilySpec(
    name="stable-diffusion-3",
    released="2024-06",
    pipelines=("StableDiffusion3Pipeline",),
    network="stable_diffusion_3:StableDiffusion3",
    names=NAMES,
    components={
        # The last block's answer to the text is not read, so what it asks of it changes nothing.
        "transformer": Component(
            "SD3Transformer2DModel",
            "run",
            idle=("transformer_blocks.{last}.attn.add_q_proj", "transformer_blocks.{last}.attn.norm_added_q"),
        ),
        "vae": Component("AutoencoderKL"),
        # Its projection is the identity, which diffusers' class asks for and the original has not.
        "text_encoder": TextEncoder("CLIPTextModelWithProjection", idle=("text_projection",)),
        "text_encoder_2": TextEncoder("CLIPTextModelWithProjection", tokenizer="tokenizer_2"),
        "text_encoder_3": TextEncoder("T5EncoderModel", "wide", "tokenizer_3", T5_TOKENIZER, optional=True),  # 19 GB in fp32
    },
    edition=_edition,
    prompt={"prompt_embeds": "hidden", "pooled_prompt_embeds": "pooled"},
    distilled=("turbo", "lightning", "hyper", "flash", "lcm"),
    apart=True,  # 3 medium and 3.5 medium are of one width, and trained from nothing each
    learns_better="sd35-large",
    counted="text_encoder_3",  # CLIP's two read 77 of them, and the pooled text is theirs
    patch=2,
    draws=16,
    targets={
        "attention": JOINT_ATTENTION,
        "attention+ff": (*JOINT_ATTENTION, *JOINT_FEED_FORWARD),
        "all-linear": (*JOINT_ATTENTION, *JOINT_FEED_FORWARD, "norm1.linear", "norm1_context.linear"),
    },
    samplers={"euler": "FlowMatchEulerDiscreteScheduler"},
    sampler="euler",
    single_file="stable_diffusion_3_file:as_one_file",
    recognise=_recognise,
    telling=_telling,
    taught_text=("text_encoder", "text_encoder_2"),  # CLIP: nobody trains T5
    reads_words=False,  # diffusers 0.42
    understood={
        "transformer": {"patch_size": (2,)},
        "scheduler": {"use_dynamic_shifting": (False, None), "num_train_timesteps": (1000,)},
    },
    sums={
        "transformer.in_channels": ("vae.latent_channels",),
        "transformer.out_channels": ("vae.latent_channels",),
        "transformer.joint_attention_dim": ("text_encoder_3.d_model",),
        "transformer.pooled_projection_dim": ("text_encoder.projection_dim", "text_encoder_2.projection_dim"),
    },
)

_TERMS = "Stability Community License, gated: accept it on the Hub first"
BASES = {
    "sd3-medium": KnownBase("stabilityai/stable-diffusion-3-medium-diffusers", f"Stable Diffusion 3 medium, 1024x1024, {_TERMS}", "other"),
    "sd35-medium": KnownBase("stabilityai/stable-diffusion-3.5-medium", f"Stable Diffusion 3.5 medium, 1024x1024, {_TERMS}", "other"),
    "sd35-large": KnownBase("stabilityai/stable-diffusion-3.5-large", f"Stable Diffusion 3.5 large, 1024x1024, {_TERMS}", "other"),
}
