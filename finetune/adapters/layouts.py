"""The layouts that adapter files are written in, and where each layout's readers look for the strength.

Every layout holds the same numbers with the strength folded in, so that alpha = rank, said in the one place its readers look:
kohya in `.alpha` tensors, diffusers in the header's `lora_adapter_metadata`, PEFT in `adapter_config.json`.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from finetune.adapters.flat import flat
from finetune.adapters.fused import join, swapped
from finetune.adapters.leaves import LEAVES
from finetune.adapters.weights import Weights
from finetune.errors import DataError
from finetune.families.names import Names
from finetune.families.names.readers import LOW_RANK
from finetune.families.names.text_encoders import bare

State = dict[str, Tensor]
Place = tuple[str, str]  # part, module: diffusers' names
Modules = Mapping[Place, Weights]
Embeddings = Mapping[str, Mapping[str, Tensor]]  # token -> key of an embedding file -> rows [vectors, D]

_KOHYA = {name: leaf for leaf, name in reversed(LEAVES.items()) if leaf not in (".w_norm", ".b_norm")} | {
    "down": ".lora_down.weight", "up": ".lora_up.weight", "dora": ".dora_scale"
}  # fmt: skip
_KOHYA_NORM = {"diff": ".w_norm", "diff_b": ".b_norm"}  # of a layer whose weight has one axis


def usual(names: Names, kind: str) -> str:
    """The layout of a file of the family that holds weights of this kind: its own, but for those that kohya's alone can hold."""
    return names.layout if kind in LOW_RANK else "kohya"


def kohya(modules: Modules, names: Names) -> State:
    """`.alpha` beside every module; the denoiser's under the names that other tools expect of the family.

    Raises:
        DataError: a module that the layout has no name for, or a kind that it cannot hold there.
    """
    out: State = {}
    ranks = Counter(w.rank for w in modules.values() if w.peft)
    common = ranks.most_common(1)[0][0] if len(ranks) > 1 and names.one_alpha else 0
    spelling = names.spelling(all(w.kind == "lora" and w.peft for w in modules.values()))
    for (part, module), w in (_fused(modules, names) if spelling.original else modules).items():
        if part != names.denoiser and part not in names.text:
            raise DataError(f"the kohya layout has no name for {part}.{module}", f"the family has {', '.join(names.parts)}")
        prefix = names.text[part].kohya if part in names.text else spelling.prefix
        out |= _kohya_tensors(f"{prefix}_{flat(module)}", w, common)
    return out


def _kohya_tensors(stem: str, w: Weights, common: int) -> State:
    """One module's tensors, alpha = rank. Where ranks differ, alpha is the `common` one everywhere and `up` makes up for it: diffusers
    (0.42) takes one alpha for all modules of a file whose ranks differ."""
    tensors, alpha = dict(w.tensors), w.alpha
    if w.kind in ("lora", "dora"):
        alpha = float(common or w.rank)
        tensors["down"], up = w.pair()
        tensors["up"] = up if alpha == w.rank else (up.float() * (w.rank / alpha)).to(up.dtype)
        if "rows" in tensors:
            tensors["dora"] = tensors.pop("rows").view(-1, *[1] * (tensors["up"].ndim - 1))
    endings = _KOHYA_NORM if "diff" in tensors and tensors["diff"].ndim == 1 else _KOHYA
    out = {stem + endings[name]: t for name, t in tensors.items()}
    if alpha is not None:
        like = next(iter(tensors.values()))
        out[stem + ".alpha"] = torch.tensor(alpha, dtype=like.dtype)
    return out


def bundle(embeddings: Embeddings) -> State:
    """The embeddings that come along with an adapter in kohya's layout."""
    out: State = {}
    for token, tensors in embeddings.items():
        out |= {f"bundle_emb.{token}.{name}": rows for name, rows in tensors.items()}
    return out


def _fused(modules: Modules, names: Names) -> dict[Place, Weights]:
    """The modules under their original names; projections that the original fuses become one block-diagonal LoRA, exactly."""
    groups: dict[str, dict[str, Weights]] = {}
    out: dict[Place, Weights] = {}
    for (part, module), w in modules.items():
        if part in names.text:
            out[part, module] = w
            continue
        original = names.original(module)
        if original is None:
            raise DataError(f"the kohya layout has no name for {part}.{module}", "--to diffusers has one")
        groups.setdefault(original, {})[module] = swapped(f"{part}.{module}", w) if names.swapped(module, *w.size) else w
    for original, members in groups.items():
        order = names.members(original) or ()
        out[names.denoiser, original] = next(iter(members.values())) if len(order) == 1 else join(order, members, names.share)
    return out


def diffusers(modules: Modules, names: Names) -> State:
    """`unet.….lora_A.weight`: the strength is in the header's metadata, see `diffusers_metadata`.

    Raises:
        DataError: a kind that the layout cannot hold.
    """
    return _peft_keys(modules, lambda part, module: f"{part}.{module}", "diffusers")


def peft(modules: Modules, names: Names) -> State:
    """`base_model.model.….lora_A.weight`, of the denoiser alone: a PEFT folder belongs to one network.

    Raises:
        DataError: a kind or a part that the layout cannot hold.
    """
    if extra := sorted({part for part, _ in modules if part.startswith("text_encoder")}):
        raise DataError(f"a PEFT folder holds one network, this adapter changes {', '.join(extra)} too", "--to kohya or --to diffusers")
    return _peft_keys(modules, lambda part, module: f"base_model.model.{module}", "PEFT")


def _peft_keys(modules: Modules, stem: Callable[[str, str], str], layout: str) -> State:
    out: State = {}
    for (part, module), w in modules.items():
        name = stem(part, module)
        if not w.peft:
            raise DataError(f"the {layout} layout cannot hold {w.what} ({part}.{module})", "--to kohya can")
        down, up = w.pair()
        out |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        if (rows := w.rows()) is not None:
            out[f"{name}.lora_magnitude_vector"] = magnitude(rows, up)
    return out


def magnitude(rows: Tensor, up: Tensor) -> Tensor:
    """DoRA's norms as PEFT's layers shape them: [out], of a convolution [1, out, 1, 1]."""
    return rows if up.ndim == 2 else rows.view(1, -1, *[1] * (up.ndim - 2))


LAYOUTS: dict[str, Callable[[Modules, Names], State]] = {"kohya": kohya, "diffusers": diffusers, "peft": peft}


def diffusers_metadata(modules: Modules) -> str:
    """The small subset of LoraConfig that every reader knows (a field that an older peft lacks makes it refuse the file)."""
    out: dict[str, Any] = {}
    for part in sorted({part for part, _ in modules}):
        # PEFT matches the ends of names, and newer versions of transformers leave `text_model.` out.
        config = small_config({bare(m): w for (p, m), w in modules.items() if p == part})
        out |= {f"{part}.{k}": v for k, v in config.items()}
    return json.dumps(out, sort_keys=True)


def small_config(modules: Mapping[str, Weights]) -> dict[str, Any]:
    """Of modules of one network: rank and alpha, with patterns where they differ; alpha = rank everywhere."""
    rank = Counter(w.rank for w in modules.values()).most_common(1)[0][0]
    odd = {m: w.rank for m, w in sorted(modules.items()) if w.rank != rank}
    config = {"r": rank, "lora_alpha": rank, "target_modules": sorted(modules), "lora_dropout": 0.0, "bias": "none"}
    if odd:
        config |= {"rank_pattern": odd, "alpha_pattern": odd}
    if any(w.kind == "dora" for w in modules.values()):
        config["use_dora"] = True
    return config


def peft_config(modules: Modules, base: str) -> dict[str, Any]:
    config = small_config({m: w for (_, m), w in modules.items()})
    return config | {"peft_type": "LORA", "base_model_name_or_path": base, "inference_mode": True, "task_type": None}
