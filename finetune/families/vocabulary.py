"""A base's tokenizers, and the tokens that training adds to them, each of one vector or several."""

import re
from collections.abc import Mapping
from typing import Any, Protocol

from tokenizers import AddedToken

from finetune.errors import ConfigError


def pieces(token: str, vectors: int) -> list[str]:
    """`<owl>`, `<owl>_1`, ...: one entry for each vector, named as diffusers names them."""
    return [token] + [f"{token}_{i}" for i in range(1, vectors)]


def token_pattern(token: str) -> str:
    """A pattern for a token; one that begins or ends like a word is no part of a longer word."""
    before, after = (r"\b" if re.match(r"\w", end) else "" for end in (token[0], token[-1]))
    return f"{before}{re.escape(token)}{after}"


class TextTokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    model_max_length: int

    def __len__(self) -> int: ...
    def __call__(self, text: str | list[str], **how: Any) -> Mapping[str, Any]: ...
    def add_tokens(self, new_tokens: list[AddedToken]) -> int: ...


class Words:
    """`tokenizers` by the name of the text encoder that reads their ids."""

    def __init__(self, tokenizers: Mapping[str, TextTokenizer]) -> None:
        self.tokenizers = dict(tokenizers)
        self.size = {part: len(t) for part, t in self.tokenizers.items()}  # before anything was added
        self.added: dict[str, int] = {}

    def add(self, token: str, vectors: int) -> None:
        """A new token for every tokenizer; captions that hold it are read as its vectors from now on.

        Raises:
            ConfigError: the token is a word already.
        """
        for part, tokenizer in self.tokenizers.items():
            if self.known(part, token) is not None:
                raise ConfigError(f"token {token}: is a word already, and a word keeps its meaning", f"for example <{token.strip('<>')}>")
            words = [AddedToken(p, single_word=bool(re.fullmatch(r"\w+", p))) for p in pieces(token, vectors)]
            if tokenizer.add_tokens(words) != vectors:
                raise ConfigError(f"token {token}: one of {', '.join(pieces(token, vectors))} is a word already", "choose another")
        self.added[token] = vectors

    def known(self, part: str, word: str) -> int | None:
        """The id of a word that is one entry of the vocabulary, or None."""
        ids = self.ids(part, word)
        return ids[0] if len(ids) == 1 else None

    def ids(self, part: str, text: str) -> list[int]:
        """A caption's ids, without marks."""
        ids: list[int] = self.tokenizers[part](self.expand(text), add_special_tokens=False)["input_ids"]
        return ids

    def expand(self, caption: str) -> str:
        """The caption with every added token written out as its pieces, in whatever case it is said, as the tokenizers read it."""
        if not self.added:
            return caption
        named = {token.lower(): token for token in self.added}
        longest = "|".join(token_pattern(token) for token in sorted(self.added, key=len, reverse=True))

        def written(match: re.Match[str]) -> str:
            token = named[match[0].lower()]
            return " ".join(pieces(token, self.added[token]))

        return re.sub(longest, written, caption, flags=re.IGNORECASE)
