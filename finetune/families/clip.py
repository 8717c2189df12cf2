"""CLIP's tokenizer, as every family with a CLIP text encoder uses it."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor
from transformers import CLIPTokenizer

from finetune.families.source import Source
from finetune.families.words import Words


def tokenizer(source: Source, name: str = "tokenizer", encoder: str = "text_encoder") -> CLIPTokenizer:
    """Raises:
    AccessError: missing or damaged. Without its vocabulary file the class loads all the same, with two entries, and every
        caption reads alike.
    """
    with source.reading(name) as folder:
        made = CLIPTokenizer.from_pretrained(folder)
        rows = int(source.config(encoder)["vocab_size"])
        if not 0.9 * rows < len(made) <= rows:
            raise ValueError(f"its vocabulary has {len(made)} entries, the text encoder {rows}")
    return made


def window(source: Source, encoder: str = "text_encoder") -> int:
    """Tokens the encoder reads, start and end included."""
    return int(source.config(encoder)["max_position_embeddings"])


def ids(words: Words, part: str, captions: Sequence[str], window: int) -> Tensor:
    """[B, window] for the text encoder `part`, padded and cut as in inference."""
    written = [words.expand(c) for c in captions]
    made = words.tokenizers[part](written, padding="max_length", truncation=True, max_length=window, return_tensors="pt")
    return cast(Tensor, made["input_ids"])
