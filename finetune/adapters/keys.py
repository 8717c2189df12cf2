"""From the keys of an adapter file, of whatever tool, to the modules they belong to. Reads names and shapes, no numbers; torch-free."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from finetune.adapters import leaves, names

EMBEDDED = {"emb_params", "clip_l", "clip_g", "t5xxl"}  # the keys of an embedding file
_BUNDLED = re.compile(r"^bundle_emb\.(.+)\.(emb_params|clip_l|clip_g|t5xxl|string_to_param\.\*)$")
_FLAT = {
    "lora_unet_": "denoiser", "lora_transformer_": "denoiser", "lycoris_": "denoiser", "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_2",
}  # fmt: skip
# Beginnings that say which network it is. Tools put them round each other, with `_WRAPPER` anywhere between.
_DOTTED = {
    "model.diffusion_model.": "denoiser", "diffusion_model.": "denoiser", "unet.": "denoiser", "transformer.": "denoiser",
    "text_encoders.clip_l.": "text_encoder", "text_encoders.clip_h.": "text_encoder", "text_encoders.clip_g.": "text_encoder_2",
    "text_encoders.t5xxl.": "text_encoder_2", "text_encoder_2.": "text_encoder_2", "text_encoder.": "text_encoder",
}  # fmt: skip
_WRAPPER = "base_model.model."
_ORIGINAL_UNET = ("input_blocks.", "output_blocks.", "middle_block.", "time_embed.", "label_emb.", "out.0", "out.2")
_ORIGINAL_FLUX = (
    "double_blocks.", "single_blocks.", "img_in", "txt_in", "final_layer.", "time_in.", "vector_in.", "guidance_in.",
)  # fmt: skip
_DIFFUSERS = (
    "down_blocks.", "up_blocks.", "mid_block.", "transformer_blocks.", "single_transformer_blocks.", "conv_", "time_", "add_", "proj_out",
    "x_emb", "context_", "norm_out",
)  # fmt: skip
_BARE = (*_ORIGINAL_UNET[:3], *_ORIGINAL_FLUX[:2], *_DIFFUSERS[:5])  # what a key may begin with that names no network
_XLABS = re.compile(r"^(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight$")


@dataclass
class Entry:
    """One module of the file; several of diffusers', in order, where the original code fuses them."""

    part: str
    modules: tuple[str, ...]
    original: bool = False  # whether it is named as in the original code, whose rows may stand in another order
    leaves: dict[str, str] = field(default_factory=dict)  # our name of the tensor -> its key

    @property
    def kind(self) -> str | None:
        return leaves.kind(self.leaves)

    def shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        """Those of its own tensors, by our names."""
        return {leaf: shapes[key] for leaf, key in self.leaves.items()}


@dataclass
class Found:
    layout: str
    entries: list[Entry]
    embeddings: dict[str, dict[str, str]]  # token -> key of an embedding file -> its key here
    unknown: list[str]  # keys that belong to nothing known
    twice: list[str]  # keys whose place another key has taken
    family: str | None


@dataclass(frozen=True)
class Place:
    layout: str
    part: str
    modules: tuple[str, ...]  # diffusers' names
    original: bool = False


def find(shapes: Mapping[str, Sequence[int]], family: str | None = None) -> Found:
    """Sorts keys into modules. `shapes` tells one family from another by the width of what their attention reads, unless it is known."""
    entries: dict[tuple[str, tuple[str, ...]], Entry] = {}
    embeddings: dict[str, dict[str, str]] = {}
    unknown, twice, seen = [], [], set()
    for key in sorted(shapes):
        if m := _BUNDLED.match(key):
            name = m[2] if m[2] in EMBEDDED else "emb_params"
            embeddings.setdefault(m[1], {})[name] = key
            continue
        stem, leaf = leaves.split(_from_xlabs(key))
        place = _place(stem) if leaf else None
        if place is None or leaf is None:
            unknown.append(key)
            continue
        seen.add(place.layout)
        entry = entries.setdefault((place.part, place.modules), Entry(place.part, place.modules, place.original))
        twice += [key] if leaf in entry.leaves else []
        entry.leaves.setdefault(leaf, key)
    twice += _covered(entries.values())
    family = family or _family(list(entries.values()), shapes)
    foreign = [e for e in entries.values() if family and not all(names.known(family, e.part, m) for m in e.modules)]
    unknown += [key for e in foreign for key in e.leaves.values()]
    own = [e for e in entries.values() if e not in foreign]
    for e in own:
        e.part = denoiser_of(family) if e.part == "denoiser" else e.part
    return Found("+".join(sorted(seen)) or "none", own, embeddings, sorted(unknown), twice, family)


def _covered(entries: Collection[Entry]) -> list[str]:
    """A key of each fused projection that also has a member of its own."""
    single = {(e.part, e.modules[0]) for e in entries if len(e.modules) == 1}
    fused = [e for e in entries if len(e.modules) > 1 and any((e.part, m) in single for m in e.modules)]
    return [next(iter(e.leaves.values())) for e in fused]


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


def _place(stem: str) -> Place | None:
    """Where a stem belongs, by its names alone; None for one that is like nothing known."""
    for prefix, part in _FLAT.items():
        if stem.startswith(prefix):
            return _modules("kohya", part, names.dotted(stem.removeprefix(prefix)))
    network, wrapped, module = _unwrapped(stem)
    if network is None and (wrapped or module.startswith(_BARE)):
        network = "denoiser"
    layout = "peft" if wrapped else "original" if stem.startswith("text_encoders.") else "diffusers"
    return _modules(layout, network, module) if network else None


def _unwrapped(stem: str) -> tuple[str | None, bool, str]:
    """The network that a dotted stem names, if any; whether PEFT's wrapper stood round it; and the module."""
    part: str | None = None
    wrapped = False
    while True:
        if stem.startswith(_WRAPPER):
            wrapped, stem = True, stem.removeprefix(_WRAPPER)
            continue
        prefix = next((p for p in _DOTTED if stem.startswith(p)), None)
        if prefix is None:
            return part, wrapped, stem
        if part is None:
            part = _DOTTED[prefix]
        elif _DOTTED[prefix] != part and prefix != "transformer.":  # which is also what ComfyUI calls a text encoder's network
            return None, False, stem
        stem = stem.removeprefix(prefix)


def _modules(layout: str, part: str, module: str) -> Place | None:
    if part.startswith("text_encoder"):
        # CLIP's modules begin with text_model.; T5's with encoder.block.
        bare = module.startswith(("text_model.", "encoder.block.", "encoder.final", "shared", "text_projection"))
        return Place(layout, part, (module if bare else f"text_model.{module}",))
    module = module.replace(".processor.", ".")
    module = f"{module}.0" if module.endswith(".to_out") else module
    original = layout if layout == "kohya" else "original"
    if module.startswith(_ORIGINAL_UNET):
        back = names.from_unet(module)
        return Place(original, part, (back,), original=True) if back else None
    if module.startswith("single_blocks.") and module.endswith(".qkv"):  # XLabs' name for the first three of four
        return Place(original, part, (names.from_flux(module.replace("qkv", "linear1")) or ())[:3], original=True)
    if module.startswith(_ORIGINAL_FLUX):
        fused = names.from_flux(module)
        return Place(original, part, fused, original=True) if fused else None
    return Place(layout, part, (module,)) if module.startswith(_DIFFUSERS) else None


def _family(entries: Sequence[Entry], shapes: Mapping[str, Sequence[int]]) -> str | None:
    """By the names that one family alone has; else by the width of the text that cross-attention reads, whatever the kind of file."""
    denoiser = [e for e in entries if e.part == "denoiser"]
    modules = [m for e in denoiser for m in e.modules]
    inner = [e for e in denoiser if e.modules[0].startswith("transformer_blocks.")]
    inputs = {id(e): leaves.size(e.shapes(shapes))[1] for e in denoiser if leaves.misshapen(e.shapes(shapes)) is None}
    if any(m.startswith("single_transformer_blocks.") or (e.original and names.known("flux", "", m)) for e in denoiser for m in e.modules):
        return "flux"
    if inner:  # of the many transformers, the one of this width with these names
        ours = 3072 in {inputs.get(id(e)) for e in inner} and all(names.known("flux", "", m) for m in modules)
        return "flux" if ours else None
    if any(e.part == "text_encoder_2" for e in entries):
        return "stable-diffusion-xl"
    if not denoiser:
        old = any(key.startswith("lora_te_") for e in entries for key in e.leaves.values())
        return "stable-diffusion" if old else None
    widths = {768: "stable-diffusion", 1024: "stable-diffusion", 2048: "stable-diffusion-xl"}
    for e in denoiser:
        if e.modules[0].endswith(("attn2.to_k", "attn2.to_v")) and inputs.get(id(e)):
            return widths.get(inputs[id(e)])
    deep = re.compile(r"\.transformer_blocks\.[2-9]\.")
    return "stable-diffusion-xl" if any(deep.search(m) for m in modules) else None
