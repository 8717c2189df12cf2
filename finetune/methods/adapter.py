"""Adapters on a network: PEFT's layers, injected, seeded, and handed over layout-free. The types are in config/adapter_types.py."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar, cast

import peft
import regex
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from finetune import randomness
from finetune.config.adapter_types import ROWS, AdapterType
from finetune.config.method import Method
from finetune.errors import ConfigError, FinetuneError
from finetune.methods import beginnings
from finetune.methods.layer import AdaptedLayer, Weighted

NAME = "default"
FROM_BASE = ("pissa", "olora")  # initialisations that move a part of the base's weights into the adapter
REGEX = "re:"
V = TypeVar("V")


@dataclass(frozen=True)
class Change:
    """What one module's file holds: `tensors` by the names in `adapters/weights.py`, with the strength folded in."""

    kind: str
    tensors: dict[str, Tensor]


class RankAlpha(NamedTuple):
    rank: int
    alpha: float


@dataclass(frozen=True)
class Learned:
    """What an earlier run has learned in one layer: its change with the strength folded in, and the rank and alpha that it trained with."""

    change: Change
    size: RankAlpha


Start = Mapping[str, Learned]  # by layer


def matching(net: nn.Module, targets: str, choices: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The linear and convolution layers that are adapted.

    `targets` is one of the named `choices`; `all`; `re:` and a regular expression that is searched in the names; or with commas endings of
    names, or patterns with `*`.

    Raises:
        ConfigError: no regular expression; or an ending that was named by hand, or all of a named choice, matches no layer.
    """
    adaptable = [n for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if targets == "all":
        return adaptable
    if targets.startswith(REGEX):
        matched = {targets: searched("method.targets", targets.removeprefix(REGEX), {n: n for n in adaptable})}
    else:
        endings = choices.get(targets) or [t.strip() for t in targets.split(",") if t.strip()]
        matched = {ending: [name for name in adaptable if _ends(name, ending)] for ending in endings}
    idle = [ending for ending, names in matched.items() if not names]
    if not any(matched.values()) or (idle and targets not in choices):
        raise ConfigError(
            f"method.targets {', '.join(idle) or targets}: matches no layer of this base",
            f"choose from {', '.join((*choices, 'all'))}, name layers, or give re: and a regular expression",
        )
    wanted = set().union(*matched.values())
    return [n for n in adaptable if n in wanted]


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}") or fnmatchcase(name, ending)


MOST_PATTERN, PATIENCE = 1000, 1.0  # letters of a regular expression; seconds that it may take, which for names is no time at all


def searched(setting: str, pattern: str, names: Mapping[str, str]) -> list[str]:
    """The names that a regular expression is found in, or in their shorter forms.

    Raises:
        ConfigError: it is none, or one that runs for ever.
    """
    if not pattern:
        raise ConfigError(f"{setting}: an empty regular expression matches everything", "name what is meant, or --targets all")
    if len(pattern) > MOST_PATTERN:
        raise ConfigError(f"{setting}: a regular expression of {len(pattern)} letters; {MOST_PATTERN} are read", "list the layers' endings")
    ends = time.monotonic() + PATIENCE
    try:
        expression = regex.compile(pattern)

        def matches(name: str) -> bool:
            return expression.search(name, timeout=max(ends - time.monotonic(), 1e-3)) is not None

        return [n for n, short in names.items() if matches(n) or (short != n and matches(short))]
    except (regex.error, RecursionError) as e:
        raise ConfigError(f"{setting} {pattern}: no regular expression ({e})", "escape what is meant as it stands with a backslash") from e
    except TimeoutError as e:
        raise ConfigError(f"{setting} {pattern}: takes too long, as nested repetitions do", "write it more simply, or list endings") from e


def spread(setting: str, patterns: Mapping[str, V], names: Iterable[str]) -> dict[str, V]:
    """Name -> the value of the pattern that is found in it, for those that one is found in. Names begin with their network's place in
    a step; a pattern may leave that out.

    Raises:
        ConfigError: a pattern is no regular expression, is found in no name, or in one where another is found too.
    """
    out: dict[str, V] = {}
    by: dict[str, str] = {}
    names = list(names)
    for text, value in patterns.items():
        matched = searched(setting, text, {n: n.partition(".")[2] for n in names})
        if not matched:
            raise ConfigError(f"{setting} {text}: matches nothing that trains, such as {names[0] if names else 'nothing'}", "correct it")
        if both := next((n for n in matched if n in by), None):
            raise ConfigError(f"{setting} {text}: overlaps {by[both]}, at {both}", "make each match layers of its own")
        by |= dict.fromkeys(matched, text)
        out |= dict.fromkeys(matched, value)
    return out


def sizes(method: Method, layers: Iterable[str]) -> dict[str, RankAlpha]:
    """Rank and alpha of every layer, which are named with their network's place in a step: `denoiser.down_blocks...`.

    Raises:
        ConfigError: see `spread`.
    """
    layers = list(layers)
    ranks = spread("method.rank_pattern", method.rank_pattern, layers)
    alphas = spread("method.alpha_pattern", method.alpha_pattern, layers)
    out = {}
    for name in layers:
        rank = ranks.get(name, method.rank)
        out[name] = RankAlpha(rank, alphas.get(name, float(rank) if method.alpha is None else method.alpha))
    return out


def attach(
    net: nn.Module, method: Method, wanted: Mapping[str, RankAlpha], seed: int, start: Start | None = None
) -> dict[str, nn.Parameter]:
    """Injects the adapter in fp32 into a frozen network's `wanted` layers and returns what trains, by name.

    Raises:
        ConfigError: a layer that the type cannot adapt, or that `start` has other shapes for.
    """
    row = ROWS[method.kind]
    if start is not None:  # whose sizes are not the job's
        sizes = [learned.size.rank for learned in start.values()]
        method = method.model_copy(update={"rank": max(sizes, key=sizes.count)})
    _check(net, method, wanted)
    with randomness.global_rng(seed, "adapter"):
        config = _config(row, method, wanted, next(net.parameters()).is_meta)
        if hasattr(net, "get_input_embeddings"):  # a text encoder
            peft.inject_adapter_in_model(config, net, NAME)
        else:
            net.add_adapter(config, adapter_name=NAME)  # type: ignore[operator]
    adapted = layers(net)
    if odd := adapted.keys() ^ wanted.keys():
        raise FinetuneError(
            f"{len(odd)} layers were adapted or left out against what was asked for: {min(odd)}", "this is a bug worth reporting"
        )
    trainable = {n: p for n, p in net.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    for name, learned in (start or {}).items():
        _load(adapted[name], row, learned, name)
    if method.init in FROM_BASE:
        for layer in adapted.values():
            layer.moved_from_base = {k: t.detach().clone() for k, t in _held(layer, row.tensors).items()}
    return trainable


def _config(row: AdapterType, method: Method, wanted: Mapping[str, RankAlpha], counting: bool) -> object:
    """PEFT's config; on networks without weights, which are only counted, nothing is computed from weights."""
    settings = row.settings(method.model_copy(update={"init": "default"}) if counting else method)
    if "rank_pattern" in row.takes:
        alpha = "lora_alpha" if row.config == "LoraConfig" else "alpha"
        exact = {f"^{re.escape(n)}": size for n, size in wanted.items()}  # so that one name's end is not taken for another's
        common = max(wanted.values(), key=list(wanted.values()).count)
        settings |= {"r": common.rank, alpha: common.alpha}
        settings |= {"rank_pattern": {n: s.rank for n, s in exact.items() if s.rank != common.rank}}
        settings |= {"alpha_pattern": {n: s.alpha for n, s in exact.items() if s.alpha != common.alpha}}
    # One expression, which must match a name whole: of a list, PEFT takes the ends of other names too.
    return getattr(peft, row.config)(target_modules="|".join(map(re.escape, wanted)), **settings)


def _check(net: nn.Module, method: Method, wanted: Mapping[str, RankAlpha]) -> None:
    for name, size in wanted.items():
        if method.init == "orthogonal" and size.rank % 2:
            raise ConfigError(f"method.init orthogonal: takes even ranks, and that of {name} is {size.rank}", "choose another rank")
    for name in wanted:
        weight = cast(Weighted, net.get_submodule(name)).weight
        if method.init not in ("default", "gaussian") and weight.ndim > 2:
            raise ConfigError(f"method.init {method.init}: is for linear layers, and {name} is a convolution", "--targets attention+ff")
        ROWS[method.kind].check(method, name, weight.shape)


def layers(net: nn.Module) -> dict[str, AdaptedLayer]:
    """The adapted layers by the name that the module has in the base."""
    return {n: m for n, m in net.named_modules() if isinstance(m, BaseTunerLayer)}


def _tensor(layer: AdaptedLayer, attribute: str) -> Tensor | None:
    held = getattr(layer, attribute)
    if NAME not in held:
        return None
    tensor: Tensor = getattr(held[NAME], "weight", held[NAME])
    return tensor


def _held(layer: AdaptedLayer, attributes: Mapping[str, str]) -> dict[str, Tensor]:
    """The layer's own tensors by our names, from PEFT's."""
    tensors = {name: _tensor(layer, attribute) for name, attribute in attributes.items()}
    return {name: t for name, t in tensors.items() if t is not None}


MOST_MISSED = 0.02  # of a change, where it is approximated: more is another adapter


@torch.no_grad()
def _load(layer: AdaptedLayer, row: AdapterType, learned: Learned, name: str) -> None:
    """Puts what a file holds into a layer's tensors, whose strength is not folded in."""
    change = learned.change
    if row.begin and change.kind in row.after and (change.kind != row.file or not row.tensors):
        counting = layer.get_base_layer().weight.is_meta
        if not counting and any(t.any() for t in change.tensors.values()):  # a layer that learned nothing begins as any other
            _fill(layer, row, _begun(layer, row, learned, name), name, row.made or row.tensors)
        return
    _fill(layer, row, change.tensors, name, row.tensors)


def _begun(layer: AdaptedLayer, row: AdapterType, learned: Learned, name: str) -> dict[str, Tensor]:
    """The row's own tensors for a change of another kind."""
    weight: Tensor = layer.get_base_layer().weight.detach().float()
    t = {k: v.to(weight) for k, v in learned.change.tensors.items()}
    difference = t["diff"] if "diff" in t else t["up"].flatten(1) @ t["down"].flatten(1)
    difference = difference.reshape(weight.shape)
    tensors, difference_made = getattr(beginnings, row.begin)(weight, difference, learned.size.rank)
    missed = float((difference_made - difference).norm() / difference.norm())
    if missed > MOST_MISSED:
        raise ConfigError(
            f"method.start: what its file changes in {name} is no {row.file if row.tensors else 'rotation'} of rank {learned.size.rank}: "
            f"{missed:.0%} of it would be lost",
            "give the adapter type that it was trained as, or a higher --rank",
        )
    held = _held(layer, row.made or row.tensors)
    return {k: _padded(t, held[k]).view_as(held[k]) for k, t in tensors.items()}


def _padded(t: Tensor, like: Tensor) -> Tensor:
    """With zeros for the directions that a layer narrower than the rank does not have."""
    if t.numel() == like.numel():
        return t
    out = t.new_zeros(like.flatten(1).shape)
    out[: t.shape[0], : t.shape[1]] = t
    return out


def _fill(layer: AdaptedLayer, row: AdapterType, tensors: Mapping[str, Tensor], name: str, attributes: Mapping[str, str]) -> None:
    held, folded = _held(layer, attributes), next((n for n in row.folded if n in tensors), None)
    here, there = _shapes(held), _shapes(tensors)
    if here != there:
        raise ConfigError(
            f"method.start: its tensors of {name} have the shapes {there}, and {row.config} makes {here}",
            "give the settings that it was trained with, such as method.factor",
        )
    for key, tensor in held.items():
        value = tensors[key].float()
        if key == folded:
            value = value / float(layer.scaling[NAME])
        tensor.copy_(value.view(tensor.shape))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Norms of rows are a row here and a column there."""
    return {k: tuple(t.flatten().shape if k == "rows" else t.shape) for k, t in tensors.items()}


@torch.no_grad()
def result(net: nn.Module, kind: str) -> dict[str, Change]:
    """What every adapted module has learned, in fp32 on the CPU, with the strength folded in: what a file says is what applies."""
    row = ROWS[kind]
    return {name: _change(layer, row) for name, layer in layers(net).items()}


def _change(layer: AdaptedLayer, row: AdapterType) -> Change:
    if not row.tensors:
        weight, delta = layer.get_base_layer().weight.detach().float(), layer.get_delta_weight(NAME).detach().float()
        return Change(row.file, {"diff": row.change(weight, delta).cpu().contiguous()})
    tensors = {k: t.detach().float().cpu().clone() for k, t in _held(layer, row.tensors).items()}
    folded, strength = next(n for n in row.folded if n in tensors), float(layer.scaling[NAME])
    tensors[folded] *= strength
    if "rows" in tensors:
        tensors["rows"] = tensors["rows"].flatten()
    if before := getattr(layer, "moved_from_base", None):  # the change is what was learned since, of twice the rank
        tensors["down"] = torch.cat([tensors["down"], before["down"].float().cpu()])
        tensors["up"] = torch.cat([tensors["up"], -strength * before["up"].float().cpu()], 1)
    return Change(row.file, tensors)


@contextmanager
def disabled(adapted: Sequence[AdaptedLayer]) -> Iterator[None]:
    """Layers without their adapters. PEFT's own switch would also turn on the gradients of what is to stay as it is."""
    for layer in adapted:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in adapted:
            layer._disable_adapters = False


@torch.no_grad()
def limit(net: nn.Module, most: float) -> None:
    """Scales each layer's change of weight down to a norm of `most`: it is linear in every one of its tensors."""
    for layer in layers(net).values():
        parts: list[Tensor] = [p for p in layer.parameters() if p.requires_grad]
        ratio = (most / layer.get_delta_weight(NAME).float().norm().clamp(min=1e-12)).clamp(max=1.0)
        for p in parts:
            p.mul_(ratio ** (1 / len(parts)))
