"""What a family's modules are called in files of every kind, and how a file of it is recognised: one file each. Torch-free.

Modules are diffusers' dotted names. Parts are diffusers' folders (`text_encoder`, `text_encoder_2`); the denoiser's stands in `Names`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetune.families.names.readers import Rule

DENOISER = "denoiser"  # the part of a layer before its family is known
Layout = Literal["kohya", "diffusers", "peft"]


@dataclass(frozen=True)
class TextNames:
    """Of one text encoder: what files call it, and its modules."""

    key: str  # of its rows in an embedding file
    kohya: str  # what kohya's keys of it begin with
    comfy: tuple[str, ...]  # ComfyUI's words for it, as in `text_encoders.clip_l.`
    modules: re.Pattern[str]
    prefix: str = ""  # a beginning that files may leave out
    bare: tuple[str, ...] = ()  # beginnings of modules that stand without it

    def completed(self, module: str) -> str:
        """A module with the prefix that its file left out."""
        return module if module.startswith((self.prefix, *self.bare)) else self.prefix + module


@dataclass(frozen=True)
class Spelling:
    """Of the denoiser's keys in kohya's layout: `prefix`_ and diffusers' name or the original one, with _ in the place of dots."""

    prefix: str
    original: bool


@dataclass(frozen=True)
class Layer:
    """One module of a file, before its family is known."""

    part: str  # DENOISER, or a text encoder's folder
    module: str
    original: bool  # whether the file has it under its name in the family's original code
    inputs: int  # how wide what it reads is; 0 where its tensors do not tell
    label: str  # the file's own word for the part, such as lora_te


def equal(module: str) -> int:
    """For families whose original code fuses nothing."""
    return 1


def straight(module: str, outputs: int, inputs: int) -> bool:
    """For families whose original code has all rows in diffusers' order."""
    return False


def same(key: str) -> str:
    """For families that no tool has keys of its own for."""
    return key


@dataclass(frozen=True)
class Names:
    """All that adapter files need to know of a family.

    `original` and `members` are each other's inverse: several of diffusers' modules may be one of the original code's, whose output has
    their rows one below the other, each `share` times as many as the model is wide.
    """

    denoiser: str  # its folder
    layout: Layout  # of adapter files by default: one that diffusers and ComfyUI both read
    text: Mapping[str, TextNames]  # by folder
    blocks: tuple[str, ...]  # lists of blocks by either name: what a key may begin with that names no network
    beginnings: tuple[str, ...]  # of the denoiser's modules by diffusers' names
    words: tuple[str, ...]  # names with an underscore of their own: without them a flat key could not be told apart again
    holds: Callable[[str], bool]  # whether any model of the family has such a module in its denoiser
    original: Callable[[str], str | None]  # the original code's module that holds one of diffusers'; None where there is none
    members: Callable[[str], tuple[str, ...] | None]  # an original module's, in the order of its rows; None where there is none such
    recognises: Callable[[Sequence[Layer]], bool]  # whether a file with these layers is one of the family
    lora: Spelling  # of plain LoRA
    lycoris: Spelling  # of LyCORIS's kinds, and DoRA
    known: tuple[str, ...]  # bases whose configs ship with the package, one for each set of shapes
    telling: tuple[str, ...]  # endings of the layers whose shapes tell those apart
    outer: tuple[str, ...]  # beginnings of the modules outside the blocks, which some readers overlook
    rules: tuple[Rule, ...]  # who reads which files, and how well: the first that holds
    tags: tuple[str, ...]  # the Hub's
    # ModelSpec's `implementation`, whose code the tensors are named as in, by kind of file and by sd-scripts' rule
    codes: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(("adapter", "embedding", "model"), "diffusers"))
    share: Callable[[str], int] = equal
    # Whether a module, of so many outputs and inputs (0: not told), has the halves of its rows the other way round in the original code.
    swapped: Callable[[str, int, int], bool] = straight
    one_alpha: bool = False  # diffusers' reader takes one alpha for all modules of a file in kohya's layout
    usual_key: Callable[[str], str] = same  # a key that one tool has for this family alone, as others would spell it

    @property
    def embedding_keys(self) -> dict[str, str]:
        """What an embedding file calls each text encoder's rows, by folder."""
        return {part: names.key for part, names in self.text.items()}

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders of the networks that adapters change."""
        return (self.denoiser, *self.text)

    def has(self, part: str, module: str) -> bool:
        """Whether any model of the family has the module."""
        if not part.startswith("text_encoder"):
            return self.holds(module)
        return part in self.text and self.text[part].modules.fullmatch(module) is not None

    def spelling(self, plain: bool) -> Spelling:
        """In kohya's layout; `plain` is whether a file holds LoRA alone."""
        return self.lora if plain else self.lycoris

    def unnamed(self, modules: Collection[str], plain: bool) -> str | None:
        """The first of the denoiser's modules that the kohya layout has no name for."""
        named = self.original if self.spelling(plain).original else self.holds
        return next((module for module in modules if not named(module)), None)
