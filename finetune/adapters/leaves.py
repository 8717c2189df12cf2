"""What keys of adapter files end in, and which tensors make up which kind of adapter. Names and shapes alone: no torch, no numbers.

Kinds and their tensors follow LyCORIS (Yeh et al. 2023, arXiv:2309.14859), kohya's LoRA, and PEFT.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from math import prod

# What a key may end in -> our name for the tensor. Longer endings first: `.lora.down.weight` also ends in `.down.weight`.
LEAVES = {
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".dora_scale": "dora",
    ".alpha": "alpha",
    ".hada_w1_a": "w1_a",
    ".hada_w1_b": "w1_b",
    ".hada_w2_a": "w2_a",
    ".hada_w2_b": "w2_b",
    ".hada_t1": "t1",
    ".hada_t2": "t2",
    ".lokr_w1": "k1",
    ".lokr_w1_a": "k1_a",
    ".lokr_w1_b": "k1_b",
    ".lokr_w2": "k2",
    ".lokr_w2_a": "k2_a",
    ".lokr_w2_b": "k2_b",
    ".lokr_t2": "k2_t",
    ".oft_blocks": "blocks",
    ".rescale": "rescale",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "diff",
    ".b_norm": "diff_b",
}
# PEFT's, with or without the name of the adapter: `.lora_A.weight`, `.lora_A.default.weight`; `bias` is that of `lora_bias=True`.
_PEFT = re.compile(r"^(.*)\.lora_(A|B|magnitude_vector)(?:\.(?!weight$|bias$)[^.]+)?(?:\.(weight|bias))?$")
_PEFT_LEAVES = {
    ("A", "weight"): "down",
    ("B", "weight"): "up",
    ("B", "bias"): "up_bias",
    ("magnitude_vector", "weight"): "rows",
    ("magnitude_vector", None): "rows",
}

# The tensors that a kind needs, in each of the ways that it may be written; every other one of `_BESIDE` may stand beside them.
_WAYS: dict[str, tuple[frozenset[str], ...]] = {
    "lora": (frozenset({"down", "up"}), frozenset({"down", "up", "mid"})),
    "loha": (frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}), frozenset({"w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"})),
    "lokr": (
        frozenset({"k1", "k2"}),
        frozenset({"k1", "k2_a", "k2_b"}),
        frozenset({"k1", "k2_a", "k2_b", "k2_t"}),
        frozenset({"k1_a", "k1_b", "k2"}),
        frozenset({"k1_a", "k1_b", "k2_a", "k2_b"}),
        frozenset({"k1_a", "k1_b", "k2_a", "k2_b", "k2_t"}),
    ),
    "oft": (frozenset({"blocks"}), frozenset({"blocks", "rescale"})),
    "full": (frozenset({"diff"}), frozenset({"diff_b"}), frozenset({"diff", "diff_b"})),
}
_BESIDE = {
    "lora": {"alpha", "dora", "rows", "diff_b", "up_bias"},
    "loha": {"alpha", "dora", "diff_b"},
    "lokr": {"alpha", "dora", "diff_b"},
    "oft": {"alpha", "diff_b"},
    "full": {"alpha", "dora"},
}
RANKED = ("down", "w1_b", "k2_b", "k1_b")  # tensors whose first axis is the rank
_AXES = {"alpha": (0, 5), "rows": (1, 5), "diff": (1, 5), "diff_b": (1, 1), "up_bias": (1, 1), "blocks": (3, 3), "rescale": (0, 5)}


def split_key(key: str) -> tuple[str, str | None]:
    """A key as the name of what it changes, and our name of the tensor; None where it ends in none that is known."""
    for ending, leaf in LEAVES.items():
        if key.endswith(ending):
            return key.removesuffix(ending), leaf
    if m := _PEFT.match(key):
        stem, side, what = m.groups()
        return stem, _PEFT_LEAVES.get((side, what))
    return key, None


def kind(leaves: Collection[str]) -> str | None:
    """lora, dora, loha, lokr, oft or full; None where some tensor is missing, or one is there that the kind has no use for."""
    names = set(leaves)
    for name, ways in _WAYS.items():
        if any(way <= names <= way | _BESIDE[name] for way in ways):
            if {"dora", "rows"} <= names:
                return None  # two claims about the same norms
            return "dora" if name == "lora" and names & {"dora", "rows"} else name
    return None


def odd(leaves: Collection[str]) -> str:
    """Why `leaves` make no kind, in words."""
    names = set(leaves)
    name, way = "", frozenset[str]()  # the largest that is whole
    for kind_name, ways in _WAYS.items():
        for tensors in ways:
            if tensors <= names and len(tensors) > len(way):
                name, way = kind_name, tensors
    if not way:
        return f"has no matching half, only {', '.join(sorted(names))}"
    more = names - way - _BESIDE[name] or names & {"dora", "rows"}
    return f"holds {', '.join(sorted(more))} beside {', '.join(sorted(way))}, which are not understood together"


def misshapen(leaves: Mapping[str, Sequence[int]]) -> str | None:
    """The first tensor whose shape cannot be right whatever the layer, by our name; None if all may be."""
    for leaf, shape in leaves.items():
        least, most = _AXES.get(leaf, (2, 5))
        if not least <= len(shape) <= most or 0 in shape or (leaf == "alpha" and prod(shape) != 1):
            return leaf
    return None


def unpaired(leaves: Mapping[str, Sequence[int]]) -> tuple[str, str] | None:
    """Two tensors whose product cannot be made, by our names; None if all can be."""
    pairs = [("down", "up")] if "mid" not in leaves else []
    if "t1" not in leaves:
        pairs += [("w1_b", "w1_a"), ("w2_b", "w2_a")]
    pairs.append(("k1_b", "k1_a"))
    if "k2_t" not in leaves:
        pairs.append(("k2_b", "k2_a"))
    for right, left in pairs:
        if right in leaves and left in leaves and leaves[right][0] != leaves[left][1]:
            return right, left
    return None


def layer_size(leaves: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Outputs and inputs of the layer that tensors of these shapes fit; 0 where they do not tell."""
    t = leaves
    if "down" in t and "up" in t:
        return t["up"][0], t["down"][1]
    if "diff" in t:
        return t["diff"][0], t["diff"][1] if len(t["diff"]) > 1 else 0
    if "w1_a" in t and "w1_b" in t:
        return t["w1_a"][1 if "t1" in t else 0], t["w1_b"][1]
    if "blocks" in t:
        return t["blocks"][0] * t["blocks"][1], 0
    first, second = t.get("k1"), t.get("k2")
    if not first and t.keys() >= {"k1_a", "k1_b"}:
        first = t["k1_a"][0], t["k1_b"][1]
    if not second and t.keys() >= {"k2_a", "k2_b"}:
        second = t["k2_a"][1 if "k2_t" in t else 0], t["k2_b"][1]
    if first and second:
        return first[0] * second[0], first[1] * second[1]
    return (t["diff_b"][0], 0) if "diff_b" in t else (0, 0)


def numbers(leaves: Mapping[str, Sequence[int]]) -> int:
    """How many numbers the change of the weight has that tensors of these shapes make; 0 where they do not tell (OFT, a lone bias)."""
    t = leaves
    if "down" in t:
        kernel = t["mid"][2:] if "mid" in t else t["down"][2:]
        return t["up"][0] * t["down"][1] * prod(kernel)
    if "diff" in t:
        return prod(t["diff"])
    if "w1_a" in t:
        return t["w1_a"][1] * t["w1_b"][1] * prod(t["t1"][2:]) if "t1" in t else t["w1_a"][0] * prod(t["w1_b"][1:])
    if not t.keys() & {"k1", "k1_a"}:
        return 0
    first = prod(t["k1"]) if "k1" in t else t["k1_a"][0] * t["k1_b"][1]
    if "k2" in t:
        return first * prod(t["k2"])
    if "k2_t" in t:
        return first * t["k2_a"][1] * t["k2_b"][1] * prod(t["k2_t"][2:])
    return first * t["k2_a"][0] * prod(t["k2_b"][1:])
