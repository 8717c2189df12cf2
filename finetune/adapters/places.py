"""From the stem of a key, of whatever tool, to the module that it names. Names alone: no shapes, no numbers. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from finetune.adapters.flat import dotted
from finetune.families.names import DENOISER, Names

# Beginnings that say which network it is. Tools put them round each other, with `_WRAPPER` anywhere between.
_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")  # of the denoiser, whatever its family
_DOTTED = ("model.diffusion_model.", "diffusion_model.")
_COMFY = "text_encoders."
_INNER = "transformer."  # what ComfyUI calls a text encoder's network, too
_WRAPPER = "base_model.model."


@dataclass(frozen=True)
class Place:
    layout: str
    part: str
    modules: tuple[str, ...]  # diffusers' names
    original: Names | None = None  # the family in whose original code it is named so
    label: str = ""  # the file's own word for the part


@dataclass(frozen=True)
class KeyReader:
    """How keys are read: as those of the first of `families` that has such a module."""

    families: Sequence[Names]

    @cached_property
    def _flat(self) -> Mapping[str, str]:
        """What a flat key begins with -> the part; the longest first, as one may begin with another."""
        out = dict.fromkeys(_FLAT, DENOISER)
        for names in reversed(self.families):
            out |= {f"{spelling.prefix}_": DENOISER for spelling in (names.lora, names.lycoris)}
            out |= {f"{text.kohya}_": part for part, text in names.text.items()}
        return dict(sorted(out.items(), key=lambda item: -len(item[0])))

    @cached_property
    def _dotted(self) -> Mapping[str, str]:
        out = dict.fromkeys(_DOTTED, DENOISER)
        for names in reversed(self.families):
            out[f"{names.denoiser}."] = DENOISER
            for part, text in names.text.items():
                out |= {f"{_COMFY}{word}.": part for word in text.comfy}
                out[f"{part}."] = part
        return out

    @cached_property
    def _blocks(self) -> tuple[str, ...]:
        out: tuple[str, ...] = ()
        for names in self.families:
            out += names.blocks
        return out

    def usual(self, key: str) -> str:
        """A key as most tools would spell it."""
        return next((usual for names in self.families if (usual := names.usual_key(key)) != key), key)

    def place(self, stem: str) -> Place | None:
        """Where a stem belongs; None for one that is like nothing known."""
        for prefix, part in self._flat.items():
            if stem.startswith(prefix):
                return self._module("kohya", part, dotted(stem.removeprefix(prefix)), prefix.removesuffix("_"))
        part_named, label, wrapped, module = self._unwrapped(stem)
        if part_named is None and (wrapped or module.startswith(self._blocks)):
            part_named = DENOISER
        layout = "original" if stem.startswith(_COMFY) else "diffusers"
        layout = "peft" if wrapped else layout
        return self._module(layout, part_named, module, label) if part_named else None

    def _unwrapped(self, stem: str) -> tuple[str | None, str, bool, str]:
        """The part that a dotted stem names, if any, and the word for it; whether PEFT's wrapper stood round it; and the module."""
        part, label, wrapped = None, "", False
        while True:
            if stem.startswith(_WRAPPER):
                wrapped, stem = True, stem.removeprefix(_WRAPPER)
                continue
            prefix = next((p for p in self._dotted if stem.startswith(p)), None)
            if prefix is None:
                return part, label, wrapped, stem
            if part is None:
                part, label = self._dotted[prefix], prefix.removesuffix(".")
            elif self._dotted[prefix] != part and prefix != _INNER:
                return None, "", False, stem
            stem = stem.removeprefix(prefix)

    def _module(self, layout: str, part: str, module: str, label: str) -> Place | None:
        if part != DENOISER:
            return Place(layout, part, (self._of_text(part, module),), label=label)
        module = module.replace(".processor.", ".")
        module = f"{module}.0" if module.endswith(".to_out") else module
        for names in self.families:
            if members := names.members(module):
                return Place(layout if layout == "kohya" else "original", part, members, names, label)
        known = any(module.startswith(names.beginnings) for names in self.families)
        return Place(layout, part, (module,), label=label) if known else None

    def _of_text(self, part: str, module: str) -> str:
        """A text encoder's module with the prefix that the file left out."""
        texts = [names.text[part] for names in self.families if part in names.text]
        spelt = [text.completed(module) for text in texts]
        return next((name for name, text in zip(spelt, texts, strict=True) if text.modules.fullmatch(name)), spelt[0])
