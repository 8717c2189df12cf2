"""Torch-free facts about families and bases, for the command line and the plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.families.names import Names

CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
CLIP_TARGETS = {"attention": CLIP_ATTENTION, "attention+ff": (*CLIP_ATTENTION, "fc1", "fc2"), "all-linear": (*CLIP_ATTENTION, "fc1", "fc2")}


@dataclass(frozen=True)
class FamilySpec:
    name: str
    released: str  # year and month: the order in which families are shown
    pipelines: tuple[str, ...]  # class names in model_index.json
    implementation: str  # module in this folder, and its class
    names: Names  # what its files call its modules
    text: tuple[str, ...]  # the folders of the text encoders
    tokenizers: tuple[str, ...]
    targets: dict[str, tuple[str, ...]]  # endings of module names or patterns, by the name of the choice
    samplers: dict[str, str]  # legal samplers by short name -> scheduler class
    sampler: str
    taught_text: tuple[str, ...]  # text encoders that fine-tuning may train
    text_targets: dict[str, tuple[str, ...]] = field(default_factory=lambda: CLIP_TARGETS)
    calls: int = 2  # of the denoiser a sampling step: guidance asks it twice, unless it was distilled in
    draws: int = 8  # its pipeline draws sides of multiples of so many pixels, whatever the autoencoder could
    # What makes one file in the original layout of a whole model: a module in this folder, and its function of the base and of state dicts
    # by folder. None: nothing does.
    single_file: str | None = None
    # Of settings that change what a network is asked: the values that are understood, by component. One that is not there is the usual one.
    understood: Mapping[str, Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    # Sizes that fit each other: one of a component's config -> those that add up to it.
    sums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    inert: tuple[str, ...] = ()  # endings of trainable tensors that may have no gradient

    @property
    def denoiser(self) -> str:
        """The folder of the network that adapters go into."""
        return self.names.denoiser

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders with weights that a run uses; others, such as a safety checker, stay where they are."""
        return (self.denoiser, "vae", *self.text)


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")

# Of a schedule that ends in pure noise, and is sampled from there (Lin et al. 2023, arXiv:2305.08891).
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@dataclass(frozen=True)
class KnownBase:
    hub: str | None  # None: ships with the package
    about: str
    licence: str  # by the Hub's identifiers
    guidance: float | None = None  # where the family's default does not suit
    names: Path | None = None  # a file of all that it was taught, a name a line
    said: str = ""  # how these names are said
    sheet: Path | None = None  # a picture of each, drawn by it
