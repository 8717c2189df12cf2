"""An adapter as a person names it: a file and how strongly it is applied. Torch-free."""

from pathlib import Path

from finetune import files
from finetune.errors import ConfigError

MOST = 100  # of a weight: beyond it, and far before, all is noise


def parse_adapter(text: str) -> tuple[Path, float]:
    """`file.safetensors:0.8` -> path and weight; a colon in the path itself (Windows) is left alone.

    Raises:
        ConfigError: the weight is not a number, or so large that nothing but noise is drawn.
    """
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists() or "/" in weight or "\\" in weight:
        return files.home(text), 1.0
    hint = "for example --adapter x.safetensors:0.8"
    try:
        strength = float(weight)
    except ValueError as e:
        raise ConfigError(f"--adapter {text}: the weight {weight!r} is not a number", hint) from e
    if not abs(strength) <= MOST:  # nor is nan
        raise ConfigError(f"--adapter {text}: the weight {weight} must lie between -{MOST} and {MOST}", hint)
    return files.home(path), strength
