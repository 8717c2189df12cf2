"""The families and their bases, as far as they are known without loading anything. Torch-free.

A family is found by its file in facts/: nothing here names one.
"""

import importlib
import pkgutil
from typing import Any

from finetune.families import facts
from finetune.families.names import Names
from finetune.families.spec import FamilySpec, KnownBase

_FAMILY_FACTS = sorted(
    (importlib.import_module(f"{facts.__name__}.{module.name}") for module in pkgutil.iter_modules(facts.__path__)),
    key=lambda module: str(module.SPEC.released),
)
FAMILIES: tuple[FamilySpec, ...] = tuple(module.SPEC for module in _FAMILY_FACTS)
BASES: dict[str, KnownBase] = {}
for _facts in _FAMILY_FACTS:
    BASES |= _facts.BASES
_tokenizers: dict[str, None] = {}
for _spec in FAMILIES:
    for _encoder in _spec.encoders.values():
        _tokenizers |= dict.fromkeys(_encoder.words.named)
TOKENIZERS = tuple(_tokenizers)
PARTS = tuple(sorted(frozenset[str]().union(*(spec.parts for spec in FAMILIES))))


def of_name(family: str) -> FamilySpec:
    """Raises:
    LookupError: no family has this name.
    """
    for spec in FAMILIES:
        if spec.name == family:
            return spec
    raise LookupError(f"no family {family}")


def of_pipeline(cls: str) -> FamilySpec | None:
    """The family whose bases' `model_index.json` name this class."""
    return next((spec for spec in FAMILIES if cls in spec.pipelines), None)


def names_of(family: str | None) -> Names | None:
    """What files call the modules of a family; None where it is not told, or not known here."""
    return next((spec.names for spec in FAMILIES if spec.name == family), None)


def code(where: str) -> Any:
    """The class or function that facts name as `module:name`, of a module in this folder."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(f"finetune.families.{module}"), name)


# Families of the field that are asked for by name and not supported yet: how names of their models begin, and their pipelines.
NOT_YET = {
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
    model_name = name.rpartition("/")[2].lower()
    for start, (title, cls) in NOT_YET.items():
        if cls == pipeline or (pipeline is None and model_name.startswith(start)):
            return title
    return None
