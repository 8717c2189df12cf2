"""Facts that families share whose denoiser is a U-Net on a discrete noise schedule. Torch-free."""

from collections.abc import Mapping
from typing import Any, TypedDict

from finetune.data.inputs import INPAINT_MASK, MASKED
from finetune.families.spec import ATTENTION, FEED_FORWARD, Configs, Original, Shapes, pixels_per_latent

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


PROBE = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"  # its width tells what text a U-Net reads
FIRST = "model.diffusion_model.input_blocks.0.0.weight"  # and this one's what it reads beside


def original(shapes: Shapes, models: Mapping[tuple[int, int], str], text: Mapping[str, str]) -> Original | str | None:
    """What a single file is of, by the width of the text that its U-Net reads and by its channels; `models` are the known bases by these,
    `text` what the keys of their text encoders begin with."""
    if PROBE not in shapes:
        return None
    width, channels = shapes[PROBE][1], shapes[FIRST][1] if FIRST in shapes else 4
    if (width, channels) in models:
        return Original(models[width, channels], PROBE, text)
    if (width, 4) in models:
        return f"whose U-Net reads {channels} channels"
    return f"whose attention reads text of width {width}"


def telling(base: Configs) -> Shapes:
    """Of a single file that is written from a base."""
    unet = base.config("unet")
    return {PROBE: (0, int(unet["cross_attention_dim"])), FIRST: (0, int(unet["in_channels"]))}
