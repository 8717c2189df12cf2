"""An adapter file in another layout, with the weights of its base where what it changes depends on them."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from finetune import files
from finetune.adapters import dense
from finetune.adapters.convert import convert
from finetune.adapters.read import read
from finetune.families import load
from finetune.sampling import apply
from finetune.sampling.generate import Request, choose_base, sampler_for


def rewrite(
    path: Path, to: str, out: Path | None, family: str | None, rank: int | None, base: str | None, say: Callable[[str], None]
) -> Path:
    """`convert`, on the base that is given or that the file names.

    Raises:
        DataError, ConfigError: see `convert`; or the file does not fit the base.
    """
    needed = to in ("full", "svd") and dense.needs_base(read(path, family).modules)
    if out is not None and out.parent.is_dir():
        files.sweep(out.parent, out.name)
    return convert(path, to, out, family, rank, _weights(path, base) if needed else None, say)


def _weights(path: Path, base: str | None) -> dense.Base:
    """The own weights of the layers that a file changes."""
    adapter = read(path)
    family = load.family(choose_base(base, [adapter]))
    sampler_for(family, Request([], base=base), [adapter])

    def weight(part: str, module: str) -> Tensor:
        return apply.layer(family.parts.load(part), module).weight

    return weight
