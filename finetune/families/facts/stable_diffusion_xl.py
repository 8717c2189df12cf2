"""Stable Diffusion XL."""

from finetune.families.spec import KINDS, STABILITY, FamilySpec, KnownBase
from finetune.families.unets import DISCRETE, DISCRETE_SAMPLERS, UNET_ASKED, UNET_TARGETS

SPEC = FamilySpec(
    name="stable-diffusion-xl",
    released="2023-07",
    pipelines=("StableDiffusionXLPipeline",),
    implementation="stable_diffusion_xl:StableDiffusionXL",
    denoiser="unet",
    text=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    layout="kohya",
    targets=UNET_TARGETS,
    samplers=DISCRETE_SAMPLERS,
    sampler="euler",
    taught_text=("text_encoder", "text_encoder_2"),
    embedding_keys={"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    understood={"unet": UNET_ASKED | {"addition_embed_type": ("text_time",)}, "scheduler": DISCRETE},
    sums={
        "unet.in_channels": ("vae.latent_channels",),
        "unet.out_channels": ("vae.latent_channels",),
        "unet.cross_attention_dim": ("text_encoder.hidden_size", "text_encoder_2.hidden_size"),
    },
    codes=dict.fromkeys(KINDS, STABILITY),
)

BASES = {
    "sdxl": KnownBase("stabilityai/stable-diffusion-xl-base-1.0", "Stable Diffusion XL 1.0, 1024x1024", "openrail++"),
}
