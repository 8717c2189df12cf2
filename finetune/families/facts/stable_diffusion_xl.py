"""Stable Diffusion XL."""

from finetune.families.names.stable_diffusion_xl import NAMES
from finetune.families.spec import FamilySpec, KnownBase
from finetune.families.unets import DISCRETE, DISCRETE_SAMPLERS, UNET_ASKED, UNET_TARGETS

SPEC = FamilySpec(
    name="stable-diffusion-xl",
    released="2023-07",
    pipelines=("StableDiffusionXLPipeline",),
    implementation="stable_diffusion_xl:StableDiffusionXL",
    names=NAMES,
    text=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    targets=UNET_TARGETS,
    samplers=DISCRETE_SAMPLERS,
    sampler="euler",
    single_file="unet_file:whole",
    taught_text=("text_encoder", "text_encoder_2"),
    understood={"unet": UNET_ASKED | {"addition_embed_type": ("text_time",)}, "scheduler": DISCRETE},
    sums={
        "unet.in_channels": ("vae.latent_channels",),
        "unet.out_channels": ("vae.latent_channels",),
        "unet.cross_attention_dim": ("text_encoder.hidden_size", "text_encoder_2.hidden_size"),
    },
)

BASES = {
    "sdxl": KnownBase("stabilityai/stable-diffusion-xl-base-1.0", "Stable Diffusion XL 1.0, 1024x1024", "openrail++"),
}
