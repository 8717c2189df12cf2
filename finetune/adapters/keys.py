"""From the keys of an adapter file, of whatever tool, to the modules they belong to. Reads names and shapes, no numbers."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from finetune.adapters import names
from finetune.adapters.weights import LEAVES, kind

EMBEDDED = {"emb_params", "clip_l", "clip_g", "t5xxl"}  # the keys of an embedding file
_FLAT = {
    "lora_unet_": "denoiser", "lora_transformer_": "denoiser", "lycoris_": "denoiser", "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_2",
}  # fmt: skip
_DOTTED = {
    "base_model.model.": "denoiser", "model.diffusion_model.": "denoiser", "diffusion_model.": "denoiser", "unet.": "denoiser",
    "transformer.": "denoiser", "text_encoder_2.": "text_encoder_2", "text_encoder.": "text_encoder",
}  # fmt: skip
_ORIGINAL_XL = ("input_blocks.", "output_blocks.", "middle_block.", "time_embed.", "label_emb.", "out.2")
_BARE = (
    "double_blocks.",
    "single_blocks.",
    "single_transformer_blocks.",
    "transformer_blocks.",
    "down_blocks.",
    "up_blocks.",
    "mid_block.",
)
_XLABS = re.compile(r"^(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight$")


@dataclass
class Entry:
    """One module of the file; several of diffusers', in order, where the original code fuses them."""

    part: str
    modules: tuple[str, ...]
    leaves: dict[str, str] = field(default_factory=dict)  # our name of the tensor -> its key

    @property
    def kind(self) -> str | None:
        return kind(self.leaves)


@dataclass
class Found:
    layout: str
    entries: list[Entry]
    unknown: list[str]  # keys that belong to nothing known
    twice: list[str]  # keys whose place another key has taken
    family: str | None


def find(shapes: Mapping[str, Sequence[int]], family: str | None = None) -> Found:
    """Sorts keys into modules. `shapes` tells one family from another by the width of what their attention reads, unless it is known."""
    entries: dict[tuple[str, tuple[str, ...]], Entry] = {}
    unknown, twice, seen = [], [], set()
    for key in sorted(shapes):
        stem, leaf = _split(_from_xlabs(key))
        place = _place(stem) if leaf else None
        if place is None or leaf is None:
            unknown.append(key)
            continue
        layout, part, modules = place
        seen.add(layout)
        leaves = entries.setdefault((part, modules), Entry(part, modules)).leaves
        twice += [key] if leaf in leaves else []
        leaves.setdefault(leaf, key)
    single = {(e.part, e.modules[0]) for e in entries.values() if len(e.modules) == 1}
    for e in entries.values():
        if len(e.modules) > 1 and any((e.part, m) in single for m in e.modules):
            twice.append(next(iter(e.leaves.values())))
    family = family or _family([m for e in entries.values() for m in e.modules if e.part == "denoiser"], entries.values(), shapes)
    denoiser = denoiser_of(family)
    for e in entries.values():
        e.part = denoiser if e.part == "denoiser" else e.part
    return Found("+".join(sorted(seen)) or "none", list(entries.values()), unknown, twice, family)


def denoiser_of(family: str | None) -> str:
    """The part that the denoiser is, in diffusers' folders."""
    return "transformer" if family == "flux" else "unet"


def _from_xlabs(key: str) -> str:
    m = _XLABS.match(key)
    if not m:
        return key
    size, number, what, side, leaf = m.groups()
    if size == "double":
        return f"double_blocks.{number}.{'txt' if side == '2' else 'img'}_attn.{what}.lora.{leaf}.weight"
    return f"single_blocks.{number}.{'qkv' if what == 'qkv' else 'linear2'}.lora.{leaf}.weight"


def _split(key: str) -> tuple[str, str | None]:
    for ending, leaf in LEAVES.items():
        if key.endswith(ending):
            return key.removesuffix(ending), leaf
    return key, None


def _place(stem: str) -> tuple[str, str, tuple[str, ...]] | None:
    """Layout, part and diffusers' modules of a stem."""
    for prefix, part in _FLAT.items():
        if stem.startswith(prefix):
            module = names.dotted(stem.removeprefix(prefix))
            return _modules("kohya", part, module)
    for prefix, part in _DOTTED.items():
        if stem.startswith(prefix):
            layout = "peft" if prefix.startswith("base_model") else "original" if "diffusion_model" in prefix else "diffusers"
            return _modules(layout, part, stem.removeprefix(prefix))
    if stem.startswith(_BARE):
        return _modules("original" if stem.startswith(("double", "single_blocks")) else "diffusers", "denoiser", stem)
    return None


def _modules(layout: str, part: str, module: str) -> tuple[str, str, tuple[str, ...]] | None:
    if part.startswith("text_encoder"):
        # CLIP's modules begin with text_model.; T5's with encoder.block.
        bare = module if module.startswith(("text_model.", "encoder.block.", "text_projection")) else f"text_model.{module}"
        return layout, part, (bare,)
    module = module.replace(".processor.", ".")
    module = f"{module}.0" if module.endswith(".to_out") else module
    if module.startswith(_ORIGINAL_XL):
        back = names.from_xl(module)
        return (layout, part, (back,)) if back else None
    if module.startswith("single_blocks.") and module.endswith(".qkv"):
        return layout, part, (names.from_flux(module.replace("qkv", "linear1")) or ())[:3]
    if fused := names.from_flux(module) if layout in ("kohya", "original") else None:
        return layout, part, fused
    return (
        (layout, part, (module,))
        if module.startswith((*_BARE, "conv_", "time_", "add_", "proj_out", "x_emb", "context_", "norm_out"))
        else None
    )


def _family(denoiser: Sequence[str], entries: Collection[Entry], shapes: Mapping[str, Sequence[int]]) -> str | None:
    inner = [e for e in entries if e.part == "denoiser" and e.modules[0].startswith("transformer_blocks.") and "down" in e.leaves]
    widths = {shapes[e.leaves["down"]][1] for e in inner if len(shapes[e.leaves["down"]]) > 1}
    if any(m.startswith("single_transformer_blocks.") for m in denoiser) or 3072 in widths or any(len(e.modules) > 1 for e in inner):
        return "flux"
    if inner:
        return None  # one of the many other transformers
    if any(e.part == "text_encoder_2" for e in entries):
        return "stable-diffusion-xl"
    if not denoiser:
        old = any(key.startswith("lora_te_") for e in entries for key in e.leaves.values())
        return "stable-diffusion" if old else None
    for e in entries:
        if e.modules[0].endswith(("attn2.to_k", "attn2.to_v")) and "down" in e.leaves and len(shapes[e.leaves["down"]]) > 1:
            return {768: "stable-diffusion", 1024: "stable-diffusion", 2048: "stable-diffusion-xl"}.get(shapes[e.leaves["down"]][1])
    deep = re.compile(r"\.transformer_blocks\.[2-9]\.")
    return "stable-diffusion-xl" if any(deep.search(m) for m in denoiser) else None
