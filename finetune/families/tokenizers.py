"""The tokenizers of text encoders, by kind."""

from collections.abc import Callable
from typing import Any

from transformers import AutoTokenizer, CLIPTokenizer

from finetune.families.source import Source

KINDS: dict[str, Callable[[Any], Any]] = {"clip": CLIPTokenizer.from_pretrained, "t5": AutoTokenizer.from_pretrained}


def load(source: Source, part: str) -> Any:
    """The tokenizer of a text encoder.

    Raises:
        AccessError: missing or damaged. Without its vocabulary file a class loads all the same, with two entries, and every caption
            reads alike.
    """
    encoder = source.spec.encoders[part]
    with source.reading(encoder.tokenizer) as folder:
        tokenizer = KINDS[encoder.kind](folder)
        rows = int(source.config(part)["vocab_size"])
        if not 0.9 * rows < len(tokenizer) <= rows:
            raise ValueError(f"its vocabulary has {len(tokenizer)} entries, the text encoder {rows}")
    return tokenizer
