"""YAML 1.2 (in 1.1, `1e-4` is text and `no` is false) from files and flags, within bounds: nothing grows as it is read."""

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

MOST_LETTERS, DEPTH = 2**17, 20


def parsed(text: str) -> Any:
    """Raises:
    ValueError: no YAML, more than MOST_LETTERS, nested more deeply than DEPTH, or with an alias, which could stand for many others.
    """
    if len(text) > MOST_LETTERS:
        raise ValueError(f"it has more than {MOST_LETTERS} letters")
    depth = 0
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            if isinstance(event, AliasEvent):
                raise ValueError(f"*{event.anchor} stands for another value; write it out")
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > DEPTH:
                raise ValueError(f"it is nested more than {DEPTH} deep")
        return YAML(typ="safe", pure=True).load(text)
    except ValueError:
        raise
    except Exception as e:  # YAMLError; IndexError, AttributeError and more for tags with values that are none
        raise ValueError(str(e) or type(e).__name__) from e
