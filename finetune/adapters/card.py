"""The model card beside an adapter: the Hub's front matter, gallery, trigger words, settings, limits. No network; user text is escaped."""

import html
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ruamel.yaml import YAML

from finetune.adapters.contract import Contract
from finetune.errors import plain
from finetune.families.catalogue import of_name
from finetune.run_folder import RunFolder

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+.!|~-])")


MARK = "trained with [finetune](https://pypi.org/project/finetune-diffusion)"
MARKS = (MARK, "trained with [finetune](https://pypi.org/project/finetune)")  # the second stands in older cards


def card_path(folder: Path, name: str) -> Path:
    """`README.md`, or another name where somebody's own README is."""
    path = RunFolder(folder).readme
    if not path.exists():
        return path
    text = path.read_text(encoding="utf-8", errors="replace")
    return path if any(mark in text for mark in MARKS) else RunFolder(folder).card(name)


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, one line."""
    return _SPECIAL.sub(r"\\\1", html.escape(plain(" ".join(text.split())), quote=False))


def front_matter(contract: Contract, files: Mapping[str, str], licence: str | None, samples: Sequence[tuple[str, str]]) -> str:
    """`samples` are prompts with the paths of their pictures, relative to the card."""
    relation = "finetune" if {"model", "vae"} & files.keys() else "adapter"
    facts: dict[str, object] = {"base_model_relation": relation, "library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if "/" in contract.base:
        facts["base_model"] = contract.base
    if licence:
        facts["license"] = licence
    if contract.trigger:
        facts["instance_prompt"] = plain(contract.trigger)
    kinds = {"adapter": ("lora", "template:sd-lora"), "embedding": ("textual_inversion",), "model": (), "vae": ("vae",)}
    tags = ["text-to-image", "diffusers", "diffusers-training"]
    for kind, kind_tags in kinds.items():
        tags += kind_tags if kind in files else ()
    facts["tags"] = [*tags, *of_name(contract.family).names.tags]
    if samples:
        facts["widget"] = [{"text": plain(prompt), "output": {"url": str(PurePosixPath(path))}} for prompt, path in samples]
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = False, 4096
    yaml.dump(facts, text)
    return f"---\n{text.getvalue()}---\n"


SILENT = "No word is needed: it always acts."
WHAT = {
    "adapter": "A LoRA",
    "embedding": "New tokens (textual inversion)",
    "adapter+embedding": "A LoRA and new tokens (pivotal tuning)",
    "model": "A full fine-tune",
    "vae": "An autoencoder whose decoder was trained",
}


def _use(contract: Contract, files: Mapping[str, str], rows: Mapping[str, str], repaints: str) -> str:
    """How the files are drawn with: a line for `ft`, and a program for diffusers that stands beside them. `rows` are the embedding's keys
    by text encoder, `repaints` the pipeline of a base that does."""
    words = []
    if "model" in files:
        words.append(f"--base {_word(files['model'])}")
    if "adapter" in files:
        words.append(f"--adapter {_word(files['adapter'])}")
    if "vae" in files:
        words.append(f"--base {_word(contract.base)} --vae {_word(files['vae'])}")
    words += [f"--embedding {_word(f)}" for kind, f in files.items() if kind.startswith("embedding")]
    words += ["--image photo.png --mask mask.png"] if repaints else []
    line = f"ft generate {' '.join(words)} --prompt {_word(contract.trigger or '…')}"
    if "embedding" in files and not of_name(contract.family).reads_words:
        text = f"    {line}\n\ndiffusers' pipeline of this family takes no files of new tokens.\n"
    else:
        text = f"    {line}\n\nor in diffusers:\n\n```python\n{_program(contract, files, rows, repaints)}```\n"
    if "embedding" in files:
        names = [PurePosixPath(f).stem for kind, f in files.items() if kind.startswith("embedding")]
        comfy = " ".join(f"`embedding:{_code(name)}`" for name in names)
        text += f"\nIn ComfyUI the word is the file's name: {comfy}.\n"
    if "vae" in files:
        text += f"\nComfyUI's node Load VAE and A1111's setting SD VAE take `{_code(files['vae'])}`, with any model of this base.\n"
    return text


def _program(contract: Contract, files: Mapping[str, str], rows: Mapping[str, str], repaints: str) -> str:
    """Python that draws with the files; texts are Python's own literals."""
    cls, model = repaints or of_name(contract.family).pipelines[0], files.get("model")
    single = model is not None and model.endswith(".safetensors")
    base = model or contract.base
    pinned = f", revision={contract.base_revision!r}" if contract.base_revision and model is None else ""
    lines = [f"from diffusers import {cls}", *(["from diffusers.utils import load_image"] if repaints else [])]
    tokens = [f for kind, f in files.items() if kind.startswith("embedding")]
    if tokens:
        lines += ["from safetensors import safe_open", "from safetensors.torch import load_file"]
    how = "from_single_file" if single else "from_pretrained"
    lines += ["", f"pipe = {cls}.{how}({base!r}{pinned})" + ("" if model or "/" in base else "  # the base's folder")]
    for part, encoder in of_name(contract.family).encoders.items():
        if encoder.optional:
            lines.append(f"# of a base that lacks it, with {part}=None, {encoder.tokenizer}=None")
    if "vae" in files:
        lines.insert(1, "from diffusers import AutoencoderKL")
        lines.append(f"pipe.vae = AutoencoderKL.from_pretrained({files['vae_folder']!r})")
    if "adapter" in files:
        lines.append(f"pipe.load_lora_weights('.', weight_name={files['adapter']!r})")
    for file in tokens:
        lines += [f"rows = load_file({file!r})", f"token = safe_open({file!r}, 'pt').metadata()['token']"]
        for part, key in rows.items():
            tokenizer = part.replace("text_encoder", "tokenizer")
            lines.append(f"pipe.load_textual_inversion(rows[{key!r}], token=token, text_encoder=pipe.{part}, tokenizer=pipe.{tokenizer})")
    steps = f"num_inference_steps={contract.steps}, guidance_scale={contract.guidance:g}"
    size = f"width={contract.resolution}, height={contract.resolution}"
    size += ", image=load_image('photo.png'), mask_image=load_image('mask.png'), strength=1.0" if repaints else ""
    return "\n".join(
        [*lines, f"image = pipe({contract.trigger or 'a picture'!r}, {steps}, {size}).images[0]", 'image.save("picture.png")', ""]
    )


def card(
    contract: Contract,
    title: str,
    files: Mapping[str, str],
    settings: Mapping[str, object],
    licence: str | None,
    samples: Sequence[tuple[str, str]],
    readers: Sequence[str] = (),
    rows: Mapping[str, str] | None = None,
    repaints: str = "",
) -> str:
    """`files` are the names, beside the card, of what was written, by kind; `settings` what the table shows; `readers` who reads the
    adapter, and how well, a sentence each; `rows` the embedding's keys by text encoder; `repaints` the pipeline of a base that does."""
    silent = "It reads no word: it turns latents into pictures, and the encoder is the base's." if "vae" in files else SILENT
    trigger = f"Say `{_code(contract.trigger)}` to summon what was learned." if contract.trigger else silent
    what = WHAT["+".join(k for k in ("model", "adapter", "embedding", "vae") if k in files)]
    strength = "\nThe strength is folded into the weights: 1 is as trained." if "adapter" in files else ""
    table = "\n".join(f"| {escape(k)} | {escape(str(v))} |" for k, v in settings.items())
    base = contract.base + (f" at revision {contract.base_revision}" if contract.base_revision else "")
    made = f"""Made for {contract.prediction_type} prediction at
{contract.resolution} pixels; drawn in training with {escape(contract.sampler)}, {contract.steps} steps,
guidance {contract.guidance:g}."""
    if "vae" in files:
        made = f"Trained at {contract.resolution} pixels. Encoder and latents are the base's: adapters and models for it draw through this."
    gallery = "<Gallery />\n\n" if samples else ""
    read_by = "".join(f"- {escape(sentence)}\n" for sentence in readers)
    read_by = f"\n## Who reads it\n\n{read_by}" if readers else ""
    return f"""{front_matter(contract, files, licence, samples)}
# {escape(title)}

{gallery}{what} for {escape(base)}, {MARK} for {contract.trained_steps} steps.

## Trigger words

{trigger}

## Use

{_use(contract, files, rows or {}, repaints)}
{made}{strength}
{read_by}
## Settings

| setting | value |
|---|---|
{table}

## Limits

It knows what its training pictures showed and inherits what its base can and cannot do, its biases and its licence's terms.
Whether the training pictures may be used so is for whoever publishes this to say.
"""


def _code(text: str) -> str:
    return plain(" ".join(text.replace("`", "'").split()))


def _word(text: str) -> str:
    """For a shell, which does nothing with it: in the quotes that all of them know, where they are enough."""
    flat = plain(" ".join(text.split()))
    if re.fullmatch(r"[\w./-]+", flat):
        return flat
    return f'"{flat}"' if re.fullmatch(r"[^\"$`\\!%]*", flat) else shlex.quote(flat)
