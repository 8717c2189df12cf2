"""What of a prompt will not do what its writer may expect. Torch-free."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from finetune.errors import line
from finetune.text import WEIGHT, says

if TYPE_CHECKING:
    from finetune.families.family import Family


def notes(family: "Family", prompts: Sequence[str], triggers: Iterable[str]) -> list[str]:
    """Prompts that the text encoder does not read to their end, that lack a trigger, or that weigh words as other tools do."""
    out, room = [], family.room
    for prompt in prompts:
        if (count := family.tokens(prompt)) > room:
            out.append(f"note: a prompt of {count} tokens is cut to {room}: {line(prompt, 60)}")
    for trigger in dict.fromkeys(triggers):
        without = [p for p in prompts if not says(p, trigger)]
        if without:
            out.append(f"note: without {line(trigger, 60)!r}, which summons what was learned: {line(without[0], 60)}{_more(without)}")
    weighed = [p for p in prompts if WEIGHT.search(p)]
    if weighed:
        out.append(f"note: weights such as (word:1.3) are not read, but taken for words: {line(weighed[0], 60)}{_more(weighed)}")
    return out


def _more(prompts: Sequence[str]) -> str:
    return f" and {len(prompts) - 1} more" if len(prompts) > 1 else ""
