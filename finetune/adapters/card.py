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


def front_matter(contract: Contract, files: Mapping[str, str], licence: str | None, samples: Sequence[tuple[str, str]]) -> str:
    """`samples` are prompts with the paths of their pictures, relative to the card."""
    relation = "finetune" if "model" in files else "adapter"
    facts: dict[str, object] = {"base_model_relation": relation, "library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if "/" in contract.base:
        facts["base_model"] = contract.base
    if licence:
        facts["license"] = licence
    if contract.trigger:
        facts["instance_prompt"] = contract.trigger
    kinds = {"adapter": ("lora", "template:sd-lora"), "embedding": ("textual_inversion",), "model": ()}
    own = [tag for kind, tags in kinds.items() if kind in files for tag in tags]
    facts["tags"] = ["text-to-image", "diffusers", "diffusers-training", *own, *TAGS[contract.family]]
    if samples:
        facts["widget"] = [{"text": prompt, "output": {"url": str(PurePosixPath(path))}} for prompt, path in samples]
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = False, 4096
    yaml.dump(facts, text)
    return f"---\n{text.getvalue()}---\n"


WHAT = {
    "adapter": "A LoRA",
    "embedding": "New tokens (textual inversion)",
    "adapter+embedding": "A LoRA and new tokens (pivotal tuning)",
    "model": "A full fine-tune",
}


def _use(files: Mapping[str, str], trigger: str | None) -> str:
    """How the files are drawn with, in Markdown."""
    words = [f"--base {_code(files['model'])}"] if "model" in files else []
    words += [f"--adapter {_code(files['adapter'])}"] if "adapter" in files else []
    words += [f"--embedding {_code(f)}" for kind, f in files.items() if kind.startswith("embedding")]
    load = [
        "`DiffusionPipeline.from_pretrained`" if "model" in files else "",
        "`load_lora_weights` on a pipeline of the base" if "adapter" in files else "",
        "`load_textual_inversion`, for each text encoder" if "embedding" in files else "",
    ]
    prompt = _code(trigger or "…").replace('"', "'")
    return f'    ft generate {" ".join(words)} --prompt "{prompt}"\n\nor in diffusers, with {" and ".join(x for x in load if x)}.'


def card(
    contract: Contract,
    title: str,
    files: Mapping[str, str],
    settings: Mapping[str, object],
    licence: str | None,
    samples: Sequence[tuple[str, str]],
) -> str:
    """`files` are the names, beside the card, of what was written, by kind; `settings` what the table shows."""
    silent = "No word is needed: it always acts."
    trigger = f"Say `{_code(contract.trigger)}` to summon what was learned." if contract.trigger else silent
    what = WHAT["+".join(k for k in ("model", "adapter", "embedding") if k in files)]
    strength = "\nThe strength is folded into the weights: 1 is as trained." if "adapter" in files else ""
    rows = "\n".join(f"| {escape(k)} | {escape(str(v))} |" for k, v in settings.items())
    base = contract.base + (f" at revision {contract.base_revision}" if contract.base_revision else "")
    gallery = "<Gallery />\n\n" if samples else ""
    return f"""{front_matter(contract, files, licence, samples)}
# {escape(title)}

{gallery}{what} for {escape(base)}, {MARK} for {contract.trained_steps} steps.

## Trigger words

{trigger}

## Use

{_use(files, contract.trigger)} Made for {contract.prediction_type} prediction at
{contract.resolution} pixels; drawn in training with {escape(contract.sampler)}, {contract.steps} steps,
guidance {contract.guidance:g}.{strength}

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
