"""FLUX.1 dev and schnell."""

from finetune.families.names.flux import NAMES
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
)


def _edition(base: Configs) -> Edition:
    """dev is told its guidance; schnell was distilled for four steps and 256 tokens."""
    if base.config("transformer")["guidance_embeds"]:
        return Edition(1024, 28, 3.5, "flux-1-dev", "flux1", windows={"text_encoder_2": 512})
    return Edition(1024, 4, 0.0, "flux-1-schnell", "flux1", distilled="four steps", windows={"text_encoder_2": 256})


def _recognise(shapes: Shapes) -> Original | None:
    """By a block that it alone has, with the prefix of a whole checkpoint or without; dev by what reads its guidance."""
    for prefix in ("", "model.diffusion_model."):
        if (probe := f"{prefix}double_blocks.0.img_attn.qkv.weight") in shapes:
            base = "flux-dev" if f"{prefix}guidance_in.in_layer.weight" in shapes else "flux-schnell"
            return Original(base, probe, {"text_encoder": "text_encoders.clip_l.", "text_encoder_2": "text_encoders.t5xxl."})
    return None


FLUX_FEED_FORWARD = (*JOINT_FEED_FORWARD, "proj_mlp", "single_transformer_blocks.*.proj_out")
SPEC = FamilySpec(
    name="flux",
    released="2024-08",
    pipelines=("FluxPipeline",),
    network="flux:Flux",
    names=NAMES,
    components={
        "transformer": Component("FluxTransformer2DModel", "run"),
        "vae": Component("AutoencoderKL"),
        "text_encoder": TextEncoder("CLIPTextModel"),
        "text_encoder_2": TextEncoder("T5EncoderModel", "wide", "tokenizer_2", T5_TOKENIZER),  # 19 GB in fp32
    },
    edition=_edition,
    prompt={"prompt_embeds": "hidden", "pooled_prompt_embeds": "pooled"},
    learns_better="flux-dev",
    counted="text_encoder_2",  # T5's; CLIP's summary reads 77
    patch=2,
    targets={
        "attention": JOINT_ATTENTION,
        "attention+ff": (*JOINT_ATTENTION, *FLUX_FEED_FORWARD),
        "all-linear": (*JOINT_ATTENTION, *FLUX_FEED_FORWARD, "norm.linear", "norm1.linear", "norm1_context.linear"),
    },
    samplers={"euler": "FlowMatchEulerDiscreteScheduler"},
    sampler="euler",
    recognise=_recognise,
    taught_text=("text_encoder",),  # CLIP: nobody trains T5
    calls=1,
    understood={"transformer": {"patch_size": (1,), "out_channels": (None, 64)}},
    sums={
        "transformer.in_channels": ("vae.latent_channels",) * 4,  # patches of 2x2
        "transformer.joint_attention_dim": ("text_encoder_2.d_model",),
        "transformer.pooled_projection_dim": ("text_encoder.hidden_size",),
    },
)

BASES = {
    "flux-dev": KnownBase("black-forest-labs/FLUX.1-dev", "FLUX.1 dev, 1024x1024, gated: accept its licence on the Hub first", "other"),
    "flux-schnell": KnownBase(
        "black-forest-labs/FLUX.1-schnell", "FLUX.1 schnell, distilled for 4 steps: to draw with, not to train", "apache-2.0"
    ),
}
