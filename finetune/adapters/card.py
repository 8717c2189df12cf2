"""The model card beside an adapter: the Hub's front matter, gallery, trigger words, settings, limits. No network; user text is escaped."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ruamel.yaml import YAML

from finetune.adapters.contract import Contract

TAGS = {
    "stable-diffusion": ("stable-diffusion", "stable-diffusion-diffusers"),
    "stable-diffusion-xl": ("stable-diffusion-xl", "stable-diffusion-xl-diffusers"),
    "flux": ("flux", "flux-diffusers"),
}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+.!|~-])")


MARK = "trained with [finetune](https://pypi.org/project/finetune)"


def place(folder: Path, name: str) -> Path:
    """`README.md`, or another name where somebody's own README is."""
    path = folder / "README.md"
    own = not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")
    return path if own else folder / f"{name}-card.md"


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, one line."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def front_matter(contract: Contract, licence: str | None, samples: Sequence[tuple[str, str]]) -> str:
    """`samples` are prompts with the paths of their pictures, relative to the card."""
    facts: dict[str, object] = {"base_model_relation": "adapter", "library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if "/" in contract.base:
        facts["base_model"] = contract.base
    if licence:
        facts["license"] = licence
    if contract.trigger:
        facts["instance_prompt"] = contract.trigger
    facts["tags"] = ["text-to-image", "diffusers", "diffusers-training", "lora", "template:sd-lora", *TAGS[contract.family]]
    if samples:
        facts["widget"] = [{"text": prompt, "output": {"url": str(PurePosixPath(path))}} for prompt, path in samples]
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = False, 4096
    yaml.dump(facts, text)
    return f"---\n{text.getvalue()}---\n"


def card(
    contract: Contract, title: str, file: str, settings: Mapping[str, object], licence: str | None, samples: Sequence[tuple[str, str]]
) -> str:
    """`file` is the adapter's name beside the card; `settings` what the table shows."""
    trigger = f"Say `{_code(contract.trigger)}` to summon what was learned." if contract.trigger else "No word is needed: it always acts."
    rows = "\n".join(f"| {escape(k)} | {escape(str(v))} |" for k, v in settings.items())
    base = contract.base + (f" at revision {contract.base_revision}" if contract.base_revision else "")
    gallery = "<Gallery />\n\n" if samples else ""
    return f"""{front_matter(contract, licence, samples)}
# {escape(title)}

{gallery}A LoRA for {escape(base)}, {MARK} for {contract.trained_steps} steps.

## Trigger words

{trigger}

## Use

    ft generate --adapter {_code(file)} --prompt "…"

or in diffusers, with `load_lora_weights` on a pipeline of the base. Made for {contract.prediction_type} prediction at
{contract.resolution} pixels; drawn in training with {escape(contract.sampler)}, {contract.steps} steps, guidance {contract.guidance:g}.
The strength is folded into the weights: 1 is as trained.

## Settings

| setting | value |
|---|---|
{rows}

## Limits

It knows what its training pictures showed and inherits what its base can and cannot do, its biases and its licence's terms.
Whether the training pictures may be used so is for whoever publishes this to say.
"""


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
