"""Stable Diffusion XL."""

from finetune.families.names.stable_diffusion_xl import NAMES
from finetune.families.spec import Component, Configs, Edition, FamilySpec, KnownBase, Original, Shapes, TextEncoder
from finetune.families.unets import DISCRETE, DISCRETE_SAMPLERS, UNET_ASKED, UNET_TARGETS, original, repaints, resolution, telling

INPAINTING = "StableDiffusionXLInpaintPipeline"
SIZES = {(2048, 4): "sdxl", (2048, 9): "sdxl-inpainting"}  # text width and channels that a model reads -> the known base


def _edition(base: Configs) -> Edition:
    zeros = bool(base.index().get("force_zeros_for_empty_prompt", True))
    return Edition(resolution(base), 30, 5.0, "stable-diffusion-xl-v1-base", "sdxl_base_v1-0", zeros=zeros, **repaints(base, INPAINTING))


def _recognise(shapes: Shapes) -> Original | str | None:
    return original(shapes, SIZES, {"text_encoder": "conditioner.embedders.0.", "text_encoder_2": "conditioner.embedders.1."})


SPEC = FamilySpec(
    name="stable-diffusion-xl",
    released="2023-07",
    pipelines=("StableDiffusionXLPipeline", INPAINTING),
    network="stable_diffusion_xl:StableDiffusionXL",
    names=NAMES,
    components={
        "unet": Component("UNet2DConditionModel", "run"),
        "vae": Component("AutoencoderKL"),
        # Its last layer is not looked at.
        "text_encoder": TextEncoder("CLIPTextModel", idle=("encoder.layers.{last}.", "final_layer_norm.")),
        "text_encoder_2": TextEncoder("CLIPTextModelWithProjection", tokenizer="tokenizer_2"),
    },
    edition=_edition,
    prompt={"prompt_embeds": "hidden", "pooled_prompt_embeds": "pooled"},
    pipeline_options={"add_watermarker": False},
    distilled=("turbo", "lightning", "hyper", "lcm"),
    learns_better="sdxl",
    targets=UNET_TARGETS,
    samplers=DISCRETE_SAMPLERS,
    sampler="euler",
    single_file="unet_file:whole_file",
    recognise=_recognise,
    telling=telling,
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
    "sdxl-inpainting": KnownBase(
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1", "Stable Diffusion XL 1.0 that repaints, 1024x1024", "openrail++", 8.0
    ),
}
