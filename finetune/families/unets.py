"""Facts that families share whose denoiser is a U-Net on a discrete noise schedule. Torch-free."""

from collections.abc import Mapping
from typing import Any, TypedDict

from finetune.data.inputs import INPAINT_MASK, MASKED
from finetune.families.spec import ATTENTION, FEED_FORWARD, Configs, pixels_per_latent

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


class Repaints(TypedDict, total=False):
    """What an edition says of a base that repaints a part of a picture."""

    reads: tuple[str, ...]
    sums: Mapping[str, tuple[str | int, ...]]
    pipeline: str


def repaints(base: Configs, pipeline: str) -> Repaints:
    """Nothing of a base whose U-Net reads noise alone, or has channels that a mask and the picture without it do not explain."""
    latents = int(base.config("vae")["latent_channels"])
    if int(base.config("unet")["in_channels"]) != 2 * latents + 1:
        return {}
    channels = {"unet.in_channels": ("vae.latent_channels", 1, "vae.latent_channels")}
    return {"reads": (INPAINT_MASK, MASKED), "sums": channels, "pipeline": pipeline}


def resolution(base: Configs) -> int:
    """The side in pixels that a U-Net was trained for, whose config has that of its latents."""
    return int(base.config("unet")["sample_size"]) * pixels_per_latent(base)
