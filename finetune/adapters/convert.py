"""One adapter file in another layout, or as whole differences, or as a LoRA of another rank. What the target cannot express is an error,
never a loss."""

from collections.abc import Callable
from pathlib import Path

from finetune.adapters import dense, embedding, landing
from finetune.adapters.contract import for_rank
from finetune.adapters.layouts import Modules, Place, usual
from finetune.adapters.read import AdapterFile, named, read
from finetune.adapters.weights import Weights
from finetune.adapters.write import export
from finetune.errors import ConfigError, DataError

FORMS = ("kohya", "diffusers", "peft", "full", "svd")


def silent(text: str) -> None:
    """Says nothing."""


def convert(
    path: Path,
    to: str,
    out: Path | None = None,
    family: str | None = None,
    rank: int | None = None,
    base: dense.Base | None = None,
    say: Callable[[str], None] = silent,
) -> Path:
    """Writes `path` in the layout `to` and returns where; the strength is folded in, the header's facts stay.

    `full` are whole differences of the weights, in kohya's layout; `svd` is a LoRA of the `rank`, in the family's own. Both need the
    `base`'s weights where a change depends on them (DoRA, OFT). Embeddings that came along go into files of their own where the layout
    has no place for them.

    Raises:
        DataError: the file is damaged, its family is not known, the layout cannot hold what it holds, or it fits no model of its family.
        ConfigError: the output would replace a file, or a rank or a base is missing.
    """
    adapter = read(path, family)
    names, name = named(path, adapter.family), adapter.family or ""
    layout = {"full": usual(names, "full"), "svd": usual(names, "lora")}.get(to, to)
    target = _target(path, to, layout, out)
    modules = _fitted(path, name, adapter.on(names.denoiser))
    if to in ("full", "svd"):
        modules = _dense(path, modules, to, rank, base, say)
    facts = {k: v for k, v in adapter.metadata.items() if k != "lora_adapter_metadata"}
    if to in ("full", "svd"):
        facts = {k: v for k, v in facts.items() if k != "ss_network_args"} | NETWORKS[to]
    ranks = {w.rank for w in modules.values()}
    base_name = adapter.contract.base if adapter.contract else facts.get("ss_sd_model_name", "")
    along = adapter.embeddings if layout == "kohya" else {}
    export(modules, target, layout, name, None, for_rank(facts, max(ranks)), base_name, along)
    for token in adapter.embeddings.keys() - along.keys():
        _write_embedding(adapter, token, target, say)
    return target


# What the kohya tools load each with.
NETWORKS = {
    "full": {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "full"}'},
    "svd": {"ss_network_module": "networks.lora"},
}


def _target(path: Path, to: str, layout: str, out: Path | None) -> Path:
    stem = path.name if path.is_dir() else path.stem
    target = out or path.with_name(f"{stem}-{to}" + ("" if layout == "peft" else ".safetensors"))
    if target.is_dir() and layout != "peft":
        target = target / f"{stem}-{to}.safetensors"
    if target.exists():
        what = "is the file itself" if target.resolve() == path.resolve() else "is there already"
        raise ConfigError(f"--out {target}: {what}", "choose another name")
    return target


def _fitted(path: Path, family: str, modules: Modules) -> dict[Place, Weights]:
    """In the shapes of the known base that they are of, so that all of it lands there; as they are where they are of none."""
    shapes = landing.known_base(family, modules)
    if shapes is None:
        return dict(modules)
    name, of = shapes
    if wrong := landing.shape_misfit(of, modules):
        raise DataError(f"{path}: was made for a model like {name}, which {wrong}", "`ft adapter inspect` shows what it holds")
    return {place: w.shaped(landing.weight_shape(of, place)) for place, w in modules.items()}


def _dense(
    path: Path, modules: Modules, to: str, rank: int | None, base: dense.Base | None, say: Callable[[str], None]
) -> dict[Place, Weights]:
    if to == "svd" and rank is None:
        raise ConfigError("--to svd: needs a rank", "for example --rank 16")
    if base is None and dense.needs_base(modules):
        raise ConfigError(f"--to {to}: what {path.name} changes depends on the base's own weights", "give --base")
    whole = dense.full(modules, base or (lambda part, module: dense.like(modules[part, module])))
    if to == "full":
        return whole
    pairs, missed = dense.svd(whole, rank or 1)
    say(f"a LoRA of rank {rank} misses {missed:.2%} of the change")
    return pairs


def _write_embedding(adapter: AdapterFile, token: str, target: Path, say: Callable[[str], None]) -> None:
    path = target.with_name(f"{target.stem}-{embedding.slug(token)}.safetensors")
    if path.exists():
        raise ConfigError(f"{path}: is there already", "choose another --out")
    embedding.write(path, token, adapter.embeddings[token], None, {})
    say(f"wrote {path}: the embedding of {token}, which came along")
