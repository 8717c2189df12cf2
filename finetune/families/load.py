"""From a resolved source to the family that speaks for it."""

import logging

import diffusers
import torch
import transformers

from finetune import libraries
from finetune.families import catalogue
from finetune.families.components import Components
from finetune.families.family import Base, Family, Network
from finetune.families.source import Source

# diffusers warns of a list of modules that is empty for all families here, whenever a network is moved to a precision.
logging.getLogger("diffusers.models.modeling_utils").addFilter(lambda record: "kept in float32: []" not in record.getMessage())
# One bar per component is noise in a run that has its own.
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()


def networks(source: Source) -> Components:
    """A base's networks alone, without its words: for their shapes."""
    libraries.imported()
    return Components(source, torch.device("cpu"), torch.float32)


def family(source: Source, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Family:
    """The family object of a base; nothing but its tokenizers is loaded yet."""
    cls = catalogue.code(source.spec.network)
    libraries.imported()
    base = Base(source, device, dtype)
    network: Network = cls(base)
    return Family(base, network)
