"""The training noise of bases with a discrete schedule."""

from diffusers import DDPMScheduler

from finetune.families.source import Source
from finetune.objectives.diffusion import Schedule


def ddpm(source: Source) -> Schedule:
    """From the model's own config, built as DDPM whatever sampler it names: an Euler scheduler's noise is another parametrisation."""
    with source.reading("scheduler"):
        scheduler = DDPMScheduler.from_config(source.config("scheduler"))
        kept = scheduler.alphas_cumprod
        if kept.ndim != 1 or not ((kept >= 0) & (kept < 1)).all():
            raise ValueError("its betas are no noise schedule")
    return Schedule(kept, scheduler.config.prediction_type)
