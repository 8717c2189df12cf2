"""A whole fine-tuned base, as a diffusers folder (trained parts in the chosen number format, the others as in its source) or one file."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune import files, tensor_files
from finetune.adapters.write import DTYPES, hashed
from finetune.errors import AccessError, ConfigError, FinetuneError
from finetune.families import catalogue, contents
from finetune.families.source import Source, reason

CONTRACT = "finetune.json"  # beside model_index.json: how the model must be used


def cast(net: nn.Module, dtype: str, part: str) -> dict[str, Tensor]:
    """A network's weights on the CPU.

    Raises:
        FinetuneError: a number is not finite in the number format.
    """
    state = {k: t.detach().to("cpu", DTYPES[dtype]) if t.is_floating_point() else t.cpu() for k, t in net.state_dict().items()}
    if bad := [k for k, t in state.items() if not torch.isfinite(t).all()]:
        raise FinetuneError(f"{part}.{bad[0]}: not finite as {dtype}; nothing was written", "lower --lr, or --set run.save_dtype=fp32")
    return state


def save_network(net: Any, folder: Path, dtype: str) -> None:
    """One network with its config, as its library reads it."""
    state = cast(net, dtype, folder.name)
    if isinstance(net, ModelMixin):
        net.save_config(folder)
        save_file({k: t.contiguous() for k, t in state.items()}, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    else:
        net.save_pretrained(folder, state_dict=state)


def check_place_of_model(source: Source, path: Path, written: Collection[str]) -> None:
    """Raises:
    ConfigError: a folder that is no model is in the place of one.
    AccessError: a component that would be copied has a link to somewhere outside of the base; `written` are those that are not.
    """
    if path.exists() and not (path / "model_index.json").exists():
        raise ConfigError(f"{path}: is there already, and is no model", "choose another --out")
    for part in copied(source, written):
        try:
            contents.check_links(source.place(part))
        except (OSError, ValueError) as e:
            hint = "a written model holds nothing from elsewhere: put the file itself there"
            raise AccessError(f"--base {source.id}: {reason(e)}", hint) from e


def copied(source: Source, written: Collection[str]) -> list[str]:
    """The components that a written model takes from its source as they are."""
    parts = [k for k, v in source.index().items() if isinstance(v, list)]
    return [part for part in parts if part not in written and contents.complete(source.place(part))]


def open_alike(folder: Path) -> None:
    """Has every part of a pipeline open in one precision where none is asked for.

    diffusers opens its own networks as float32 then, transformers (5) as their configs say, or else as the weights are on the disk.
    """
    for path in folder.glob("*/config.json"):
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "_class_name" not in facts:  # which diffusers' configs have
            facts.pop("torch_dtype", None)  # the name that transformers 4 wrote
            path.write_text(json.dumps(facts | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write(
    source: Source, path: Path, nets: Mapping[str, nn.Module], dtype: str, contract: Mapping[str, Any], schedule: Mapping[str, Any]
) -> None:
    """The pipeline of `source` with `nets` (by folder) in the place of its own, as the folder `path`: whole or not at all.

    `schedule` is the scheduler's config that the networks were trained with.

    Of the source's other components the known files are copied, and nothing else that may lie there. Those that it lacks, such as a
    safety checker that was not downloaded, are left out of the index.

    Raises:
        ConfigError, AccessError: as `check_place_of_model`.
    """
    check_place_of_model(source, path, nets)
    same = copied(source, nets)
    kept = {k: v if not isinstance(v, list) or k in nets or k in same else [None, None] for k, v in source.index().items()}

    def fill(folder: Path) -> None:
        folder.mkdir()
        kept["scheduler"] = [kept["scheduler"][0], schedule.get("_class_name", kept["scheduler"][1])]
        (folder / "model_index.json").write_text(json.dumps(kept, indent=2, sort_keys=True), encoding="utf-8")
        (folder / CONTRACT).write_text(json.dumps(dict(contract), indent=1, sort_keys=True), encoding="utf-8")
        for part, net in nets.items():
            save_network(net, folder / part, dtype)
        for part in same:
            with source.reading(part):
                contents.copy(source.place(part), folder / part, source.variant_of(part), source.id)
        open_alike(folder)
        config = folder / "scheduler" / "scheduler_config.json"
        if json.loads(config.read_text(encoding="utf-8")) != schedule:
            config.write_text(json.dumps(dict(schedule), indent=2, sort_keys=True), encoding="utf-8")

    files.write(path, fill)


def write_single(source: Source, path: Path, nets: Mapping[str, nn.Module], dtype: str, metadata: Mapping[str, str]) -> None:
    """All of `nets` (by folder), trained from `source`, in its family's original layout."""
    whole = catalogue.code(str(source.spec.single_file))
    state: dict[str, Tensor] = whole(source, {part: cast(net, dtype, part) for part, net in nets.items()})
    state = {k: t.to(DTYPES[dtype]) for k, t in state.items()}
    files.write_bytes(path, tensor_files.safetensors(state, hashed(state, metadata)))
