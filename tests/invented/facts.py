"""Quill: a GLM reads captions, a transformer that is told sizes and crops denoises, flow matching."""

from finetune.families.names.quill import NAMES

from finetune.families.spec import (
    ATTENTION,
    FEED_FORWARD,
    Component,
    Configs,
    Edition,
    FamilySpec,
    KnownBase,
    TextEncoder,
    Tokenizer,
    pixels_per_latent,
)


def _edition(base: Configs) -> Edition:
    """Which of the family's models a base is: by its configs, never by its name."""
    side = int(base.config("transformer")["sample_size"]) * pixels_per_latent(base)
    # Steps, guidance, ModelSpec's architecture, kohya's version; the window of an encoder whose config has no length.
    return Edition(side, 20, 3.0, "quill-1", "quill", windows={"text_encoder": 16})


SPEC = FamilySpec(
    name="quill",
    released="2026-11",
    pipelines=("CogView4Pipeline",),  # class names in model_index.json; the first is drawn with
    network="quill:Quill",
    names=NAMES,
    # Every network of a run, by folder, with its class. `run`: in the precision that the run asks for; nothing said: always fp32.
    components={
        "transformer": Component("CogView4Transformer2DModel", "run"),
        "vae": Component("AutoencoderKL"),
        "text_encoder": TextEncoder("GlmModel", "wide", words=Tokenizer("AutoTokenizer", ("TokenizersBackend", "PreTrainedTokenizerFast"))),
    },
    edition=_edition,
    prompt={"prompt_embeds": "hidden"},  # the pipeline's argument -> what `Network.text` calls it; `negative_` goes in front by itself
    patch=2,  # pixels per token are those of the autoencoder times this
    draws=16,  # the pipeline draws sides of multiples of so many pixels
    targets={"attention": ATTENTION, "attention+ff": (*ATTENTION, *FEED_FORWARD), "all-linear": (*ATTENTION, *FEED_FORWARD)},
    samplers={"euler": "FlowMatchEulerDiscreteScheduler"},
    sampler="euler",
    taught_text=(),  # nobody trains the language model
    # Settings of configs that change what a network is asked, with the values that are understood; a base with another is refused.
    understood={"transformer": {"patch_size": (2,)}},
    # Sizes that must fit each other.
    sums={
        "transformer.in_channels": ("vae.latent_channels",),
        "transformer.out_channels": ("vae.latent_channels",),
        "transformer.text_embed_dim": ("text_encoder.hidden_size",),
    },
)

BASES: dict[str, KnownBase] = {}  # short names for --base
