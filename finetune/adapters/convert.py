"""One adapter file in another layout. What the target cannot express is an error, never a loss."""

from pathlib import Path

from finetune.adapters.contract import for_rank
from finetune.adapters.keys import denoiser_of
from finetune.adapters.read import read
from finetune.adapters.write import export
from finetune.errors import ConfigError, DataError


def convert(path: Path, to: str, out: Path | None = None, family: str | None = None) -> Path:
    """Writes `path` in the layout `to` and returns where; the strength is folded in, the header's facts stay.

    Raises:
        DataError: the file is damaged, its family is not known, or the layout cannot hold what it holds.
        ConfigError: the output would replace the input.
    """
    adapter = read(path, family)
    if adapter.family is None:
        raise DataError(f"{path}: its keys do not tell its family", "say --family")
    stem = path.name if path.is_dir() else path.stem
    target = out or path.with_name(f"{stem}-{to}" + ("" if to == "peft" else ".safetensors"))
    if target.is_dir() and to != "peft":
        target = target / f"{stem}-{to}.safetensors"
    if target.exists():
        what = "is the file itself" if target.resolve() == path.resolve() else "is there already"
        raise ConfigError(f"--out {target}: {what}", "choose another name")
    modules = adapter.on(denoiser_of(adapter.family))
    facts = {k: v for k, v in adapter.metadata.items() if k != "lora_adapter_metadata"}
    ranks = {w.rank for w in modules.values()}
    base = adapter.contract.base if adapter.contract else facts.get("ss_sd_model_name", "")
    export(modules, target, to, adapter.family, None, for_rank(facts, max(ranks)), base)
    return target
