"""The training noise of bases with a discrete schedule."""

from diffusers import DDPMScheduler

from finetune.families.source import Source
from finetune.objectives.diffusion import Schedule


def ddpm(source: Source) -> Schedule:
    """From the model's own config, built as DDPM whatever sampler it names: an Euler scheduler's noise is another parametrisation."""
    scheduler = DDPMScheduler.from_config(source.config("scheduler"))
    return Schedule(scheduler.alphas_cumprod, scheduler.config.prediction_type)
