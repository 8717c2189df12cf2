"""The tokenizers of text encoders."""

import transformers

from finetune.families.source import Source
from finetune.families.vocabulary import TextTokenizer


def load_tokenizer(source: Source, part: str) -> TextTokenizer:
    """The tokenizer of a text encoder.

    Raises:
        AccessError: missing or damaged. Without its vocabulary file a class loads all the same, with two entries, and every caption
            reads alike.
    """
    encoder = source.spec.encoders[part]
    with source.reading(encoder.tokenizer) as folder:
        tokenizer: TextTokenizer = getattr(transformers, encoder.words.cls).from_pretrained(folder)
        rows = int(source.config(part)["vocab_size"])
        if not 0.9 * rows < len(tokenizer) <= rows:
            raise ValueError(f"its vocabulary has {len(tokenizer)} entries, the text encoder {rows}")
    return tokenizer
