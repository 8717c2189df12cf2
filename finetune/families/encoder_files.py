"""Text encoders in files of their own, as they are published beside a single file of the rest, under their library's names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import AccessError
from finetune.families.source import reason
from finetune.families.spec import FamilySpec

if TYPE_CHECKING:
    import torch

FOLDER = "text_encoders"  # where they lie, if not beside the file itself


def beside(path: Path, names: Mapping[str, Sequence[str]], missing: Sequence[str]) -> dict[str, Path]:
    """Those of a single file's `missing` text encoders that there are; `names` are their files' by folder, the best first."""
    found: dict[str, Path] = {}
    for part in missing:
        places = [folder / name for name in names.get(part, ()) for folder in (path.parent, path.parent / FOLDER)]
        if there := next((place for place in places if place.is_file()), None):
            found[part] = there
    return found


def opened(path: Path, spec: FamilySpec, part: str, config: Path, dtype: "torch.dtype") -> Any:
    """A text encoder of a base with the configs in the folder `config`, from its file.

    Raises:
        AccessError: the file is unreadable, or lacks weights. Those that no answer depends on are the identity, as diffusers fills them in.
    """
    import torch
    import transformers
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    cls = getattr(transformers, spec.components[part].cls)
    try:
        state = {spec.names.text[part].completed(key): tensor.to(dtype) for key, tensor in load_file(path).items()}
        with torch.device("meta"):
            net = cls(cls.config_class.from_pretrained(config / part))
        net.load_state_dict(state, strict=False, assign=True)
    except (SafetensorError, OSError, ValueError, RuntimeError) as e:
        raise AccessError(f"--base {path}: not a readable {part} ({reason(e)})") from e
    net.tie_weights()
    still = {name: weight for name, weight in net.named_parameters() if weight.is_meta}
    if lost := [name for name in still if not name.startswith(spec.components[part].idle)]:
        raise AccessError(f"--base {path}: lacks {lost[0]}" + (f" and {len(lost) - 1} more" if lost[1:] else ""))
    net.load_state_dict({name: torch.eye(*weight.shape, dtype=dtype) for name, weight in still.items()}, strict=False, assign=True)
    return net.to(dtype)
