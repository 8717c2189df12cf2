"""kohya's flat keys: dotted names with underscores in the place of dots. Torch-free."""

import re
from functools import cache

from finetune.families.catalogue import FAMILIES


def flat(module: str) -> str:
    return module.replace(".", "_")


@cache
def _word() -> re.Pattern[str]:
    """Any family's name with an underscore of its own: the longest counts."""
    words: set[str] = set()
    for spec in FAMILIES:
        words |= set(spec.names.words)
    return re.compile(rf"(?:(?<=_)|^)(?:{'|'.join(sorted(words, key=lambda word: (-len(word), word)))})(?=_|$)")


def dotted(flat: str) -> str:
    """`down_blocks_0_attentions_1_proj_in` -> `down_blocks.0.attentions.1.proj_in`; right for every module of the known networks."""
    return _word().sub(lambda m: m[0].replace("_", "\0"), flat).replace("_", ".").replace("\0", "_")
