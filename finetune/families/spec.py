"""Torch-free facts about families and bases, for the command line and the plan."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from finetune.families.names import Names

CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
CLIP_TARGETS = {"attention": CLIP_ATTENTION, "attention+ff": (*CLIP_ATTENTION, "fc1", "fc2"), "all-linear": (*CLIP_ATTENTION, "fc1", "fc2")}


@dataclass(frozen=True)
class Component:
    """A network of a base: its class in diffusers or transformers, and the precision that it runs in.

    `fp32` is always that, `run` what the run asks for, `wide` the same but never fp16, which it overflows.
    """

    cls: str
    precision: Literal["fp32", "run", "wide"] = "fp32"
    # Beginnings of the names of weights that it has and no answer depends on; `{last}` is the number of its last layer.
    idle: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Tokenizer:
    """transformers' class that opens it, and the classes that its config may name."""

    cls: str
    named: tuple[str, ...]
    shipped: str = ""  # the folder of its files in configs/, where a known base's configs are there


CLIP_TOKENIZER = Tokenizer("CLIPTokenizer", ("CLIPTokenizer", "CLIPTokenizerFast"), "clip")
T5_TOKENIZER = Tokenizer("AutoTokenizer", ("T5Tokenizer", "T5TokenizerFast"), "t5")


@dataclass(frozen=True)
class TextEncoder(Component):
    """One that reads captions: with its tokenizer, and the folder of that."""

    tokenizer: str = "tokenizer"
    words: Tokenizer = CLIP_TOKENIZER
    optional: bool = False  # whether a base may lack it: its pipeline is given None then


class Configs(Protocol):
    """A base's own configs, as a family's facts look at them."""

    def config(self, component: str) -> Mapping[str, Any]:
        """The config of a part, by the name of its folder.

        Raises:
            AccessError: it cannot be read, or asks for what is not supported.
        """

    def index(self) -> Mapping[str, Any]:
        """What model_index.json says."""


def pixels_per_latent(base: Configs) -> int:
    """Along a side: the autoencoder halves it between its levels."""
    return int(2 ** (len(base.config("vae")["block_out_channels"]) - 1))


@dataclass(frozen=True)
class Edition:
    """Which of a family's models a base is: what its configs tell of its use."""

    resolution: int  # side in pixels that it was trained for
    steps: int  # of sampling
    guidance: float
    architecture: str  # ModelSpec's name of it
    version: str  # kohya's `ss_base_model_version`
    v2: bool = False  # whether it is Stable Diffusion 2, whose text encoder is OpenCLIP's: kohya's `ss_v2`
    distilled: str = ""  # for what, where training undoes it, and the base that learns better
    windows: Mapping[str, int] = field(default_factory=dict)  # tokens that a text encoder reads, where not as many as its config says
    reads: tuple[str, ...] = ()  # columns that the denoiser is told besides what all of the family's are: data/inputs.py
    sums: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)  # where they are others than the family's
    pipeline: str = ""  # that it is drawn with, where that is not the family's
    longest: int | None = None  # side in pixels, beyond which it has no positions
    zeros: bool = False  # whether inference puts zeros in the place of a caption, and not what is made of the empty one


Shapes = Mapping[str, Sequence[int]]  # of a file's tensors, by name


@dataclass(frozen=True)
class Original:
    """What a single file in the original layout is of."""

    base: str  # the known base whose configs and tokenizers it lacks
    probe: str  # one of its denoiser's tensors, whose number format is the file's
    text: Mapping[str, str]  # what the keys of its text encoders begin with, by folder
    # What text encoders that it does not hold are called as files of their own beside it, by folder, the best first.
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def nobodys(shapes: Shapes) -> None:
    """For families that have no such files."""


@dataclass(frozen=True)
class FamilySpec:
    """All facts of a family that are not code; one file a family in facts/ has them."""

    name: str
    released: str  # year and month: the order in which families are shown
    pipelines: tuple[str, ...]  # class names in model_index.json; the first is drawn with
    network: str  # module in this folder, and its class: see `Network` in families/family.py
    names: Names  # what its files call its modules
    components: Mapping[str, Component]  # by folder; the text encoders in the order in which `text` gives them
    edition: Callable[[Configs], Edition]
    prompt: Mapping[str, str]  # arguments of the pipeline for an encoded prompt -> what `text` calls them
    targets: dict[str, tuple[str, ...]]  # endings of module names or patterns, by the name of the choice
    samplers: dict[str, str]  # legal samplers by short name -> scheduler class
    sampler: str
    taught_text: tuple[str, ...]  # text encoders that fine-tuning may train
    reads_words: bool = True  # whether its pipeline in diffusers takes files of new tokens
    text_targets: dict[str, tuple[str, ...]] = field(default_factory=lambda: CLIP_TARGETS)
    pipeline_options: Mapping[str, Any] = field(default_factory=dict)  # beside the components
    distilled: tuple[str, ...] = ()  # words in names of bases that are distilled for few steps, which no config tells
    apart: bool = False  # whether what an adapter learned of one of its models means nothing to another that it fits
    learns_better: str = ""  # the known base that is not distilled
    counted: str = "text_encoder"  # whose tokens a caption is counted in
    patch: int = 1  # latents that the denoiser takes for one, along a side
    calls: int = 2  # of the denoiser a sampling step: guidance asks it twice, unless it was distilled in
    draws: int = 8  # its pipeline draws sides of multiples of so many pixels, whatever the autoencoder could
    # What makes one file in the original layout of a whole model: a module in this folder, and its function of the base and of state dicts
    # by folder. None: nothing does.
    single_file: str | None = None
    # What a single file is of whose tensors have these shapes. None: it is another family's; a text: of a model that is not known, and what
    # tells so.
    recognise: Callable[[Shapes], Original | str | None] = nobodys
    # What the tensors of such a file are that tell it, for one that is written from a base.
    telling: Callable[[Configs], Shapes] = lambda base: {}
    # Of settings that change what a network is asked: the values that are understood, by component. One that is not there is the usual one.
    understood: Mapping[str, Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    # Sizes that fit each other: one of a component's config -> those that add up to it, and numbers.
    sums: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)

    def of(self, index: Mapping[str, Any]) -> "FamilySpec":
        """The facts of a base with this `model_index.json`: without the text encoders that it lacks and may lack."""
        spec = self
        for part, encoder in self.encoders.items():
            if encoder.optional and index.get(part) in (None, [None, None]):
                spec = spec._without(part, encoder)
        return spec

    def _without(self, part: str, encoder: TextEncoder) -> "FamilySpec":
        components = {name: component for name, component in self.components.items() if name != part}
        names = replace(self.names, text={name: text for name, text in self.names.text.items() if name != part})
        sums = {size: summands for size, summands in self.sums.items() if not any(str(name).startswith(f"{part}.") for name in summands)}
        return replace(
            self,
            components=components,
            names=names,
            sums=sums,
            counted=next(iter(names.text)) if self.counted == part else self.counted,
            taught_text=tuple(name for name in self.taught_text if name != part),
            pipeline_options={**self.pipeline_options, part: None, encoder.tokenizer: None},
        )

    @property
    def denoiser(self) -> str:
        """The folder of the network that adapters go into."""
        return self.names.denoiser

    @property
    def text(self) -> tuple[str, ...]:
        """The folders of the text encoders."""
        return tuple(self.encoders)

    @property
    def encoders(self) -> dict[str, TextEncoder]:
        """The text encoders by folder, in the order in which `text` gives them."""
        return {part: component for part, component in self.components.items() if isinstance(component, TextEncoder)}

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The folders of the tokenizers."""
        return tuple(encoder.tokenizer for encoder in self.encoders.values())

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders with weights that a run uses; others, such as a safety checker, stay where they are."""
        return (self.denoiser, "vae", *self.text)

    @property
    def folders(self) -> tuple[str, ...]:
        """All that a run reads of a base."""
        return (*self.parts, *self.tokenizers, "scheduler")

    def read_by(self, networks: Collection[str]) -> tuple[str, ...]:
        """The same of a run whose objective asks these `networks`: "denoiser", "text", "vae". All but an autoencoder that learns alone
        need the rest: a denoiser learns from latents and captions."""
        return ("vae",) if networks == {"vae"} else self.folders


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
# Of transformers in which text and picture attend together: what they have for the text besides.
JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
JOINT_FEED_FORWARD = (*FEED_FORWARD, "ff_context.net.0.proj", "ff_context.net.2")

# Of a schedule that ends in pure noise, and is sampled from there (Lin et al. 2023, arXiv:2305.08891).
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@dataclass(frozen=True)
class KnownBase:
    """A base with a short name, as `ft models` lists it."""

    hub: str | None  # None: ships with the package
    about: str
    licence: str  # by the Hub's identifiers
    guidance: float | None = None  # where the family's default does not suit
    names: Path | None = None  # a file of all that it was taught, a name a line
    wording: str = ""  # how these names are said
    sheet: Path | None = None  # a picture of each, drawn by it
    folder: Callable[[], Path] = Path  # where one that ships with the package is
