"""What the package ships and what runs write, drawn by diffusers alone, in a process of its own, as the documents print it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from parts import Bases
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from finetune import config
from finetune.bases import TINY
from finetune.families import source
from finetune.training.run import train

FULL: dict[str, Any] = {"method": {"kind": "full"}, "data": {"resolution": 16}, "optim": {"steps": 1}}

# Each folder with no argument, and in both halves; what is in another precision than the rest would raise, and black pictures are NaN.
OPEN_EACH = """
import json, sys, warnings
import numpy, torch
from diffusers import DiffusionPipeline
warnings.simplefilter("ignore")
out = []
ways = json.loads(sys.argv[1])
for folder in sys.argv[2:]:
    for how in ({word: getattr(torch, kind) for word, kind in way.items()} for way in ways):
        pipe = DiffusionPipeline.from_pretrained(folder, **how)
        pipe.set_progress_bar_config(disable=True)
        kinds = {str(net.dtype) for net in pipe.components.values() if isinstance(net, torch.nn.Module)}
        picture = pipe("red disc", num_inference_steps=1, output_type="np").images
        out.append([folder, str(how), sorted(kinds), float(numpy.ptp(picture))])
print(json.dumps(out))
"""


def python(*words: str, cwd: Path | None = None) -> str:
    """What a fresh interpreter prints."""
    ran = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def guard(base: Path) -> None:
    """Gives a base a half-precision safety checker, which a run leaves alone and a full fine-tune takes along."""
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    look = CLIPConfig(text_config=size, vision_config=size | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    StableDiffusionSafetyChecker(look).half().save_pretrained(base / "safety_checker")
    CLIPImageProcessor(size=16, crop_size=16).save_pretrained(base / "feature_extractor")
    index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (base / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def half(base: Path, to: Path, said: str | None) -> Path:
    """A base as many on the Hub are: half-precision text encoders, whose configs say so, or nothing."""
    shutil.copytree(base, to)
    for part in to.glob("text_encoder*"):
        facts = json.loads((part / "config.json").read_text(encoding="utf-8"))
        facts.pop("dtype", None)
        (part / "config.json").write_text(json.dumps(facts | ({"torch_dtype": said} if said else {})), encoding="utf-8")
        weights = {k: t.half() if t.is_floating_point() else t for k, t in load_file(part / "model.safetensors").items()}
        save_file(weights, part / "model.safetensors", {"format": "pt"})
    return to


# By default both words that say it, and both formats; each word with each format by the slow tests.
WAYS: list[dict[str, str]] = [{}, {"dtype": "float16"}, {"torch_dtype": "bfloat16"}]
MORE_WAYS: list[dict[str, str]] = [{"torch_dtype": "float16"}, {"dtype": "bfloat16"}]


@pytest.mark.parametrize("ways", [pytest.param(WAYS, id="usual"), pytest.param(WAYS + MORE_WAYS, id="every", marks=pytest.mark.slow)])
def test_folders_draw_with_no_argument_and_in_half_precision(
    ways: list[dict[str, str]], settings: Any, bases: Bases, tmp_path: Path
) -> None:
    folders = [str(TINY)]
    for name, of, said, more in (
        ("one", "sd", "float16", {}),
        ("two", "sdxl", "float16", {"method": {"text_encoder": True}, "run": {"save_dtype": "bf16"}}),
        ("three", "flux", None, {}),
    ):
        base = half(bases(of), tmp_path / f"base-{name}", said)
        if of == "sd":
            guard(base)
        job = config.precedence.merge_settings({**FULL, "model": {"base": str(base)}, "run": {"out": str(tmp_path / name)}}, more)
        folders.append(train(config.parse(settings(**job)))["model"])
    drawn = json.loads(python("-c", OPEN_EACH, json.dumps(ways), *folders))
    assert len(drawn) == 4 * len(ways)
    for folder, how, kinds, spread in drawn:
        wanted = re.findall(r"torch\.b?float16", how) or ["torch.float32"]
        assert kinds == wanted and spread > 0, (folder, how)


def test_the_embedded_base_is_known_by_what_earlier_runs_noted() -> None:
    """Its text encoder's config once said float16, which runs and caches of that time hold the hash of."""
    where = source.resolve_base("tiny")
    assert where.fingerprint("text_encoder") == "baabfcb67044f9090b97703fa21a1b75611ce46e702d34809afebaec4246fa9a"
    assert where.fingerprint("unet") == "d8d84320657a2fef2011920283b6cbf6fea3668b1f0bfeeb26436635a570144d"


CARDS: dict[str, tuple[str, dict[str, Any]]] = {
    "adapter": ("sd", {}),
    "adapter of flux": ("flux", {}),
    "adapter of a base that repaints": ("sd-inpainting", {}),
    "folder": ("sd", FULL),
    "word": ("sd", {"method": {"kind": "none", "new_tokens": ("<owl>",), "vectors": 2}, "optim": {"lr": 1e-2, "steps": 1}}),
    "word of xl": ("sdxl", {"method": {"kind": "none", "new_tokens": ("<owl>",), "vectors": 2}, "optim": {"lr": 1e-2, "steps": 1}}),
    "adapter and word": ("sd", {"method": {"new_tokens": ("<owl>",), "vectors": 2}, "optim": {"steps": 1}}),
}


def test_the_lines_of_a_card_draw(settings: Callable[..., dict[str, Any]], bases: Bases, tmp_path: Path) -> None:
    """Word for word, each in the folder of its files; where the card names the base without a path, the base's folder stands there."""
    programs = []
    for what, (name, more) in CARDS.items():
        common = {"model": {"base": str(bases(name))}, "data": {"resolution": 16}, "run": {"out": str(tmp_path / what)}}
        made = settings(**config.precedence.merge_settings(common, more))
        made["optim"]["steps"] = 1
        out = Path(train(config.parse(made))["out"])
        card = (out / "README.md").read_text(encoding="utf-8")
        program = re.search(r"```python\n(.*?)```", card, re.S)
        assert program, what
        text = program[1].replace(f"from_pretrained({bases(name).name!r})", f"from_pretrained({str(bases(name))!r})")
        for name in ("photo.png", "mask.png"):
            Image.new("RGB", (16, 16), "white").save(out / name)
        programs.append([str(out), re.sub(r"num_inference_steps=\d+", "num_inference_steps=1", text)])
        assert "word" not in what or "ComfyUI" in card
    (tmp_path / "programs.json").write_text(json.dumps(programs))
    python(
        "-c",
        "import json, os, sys\n"
        "for folder, text in json.load(open(sys.argv[1])):\n"
        "    os.chdir(folder)\n"
        "    exec(text, {})\n"
        "    assert os.path.getsize('picture.png') > 0\n",
        str(tmp_path / "programs.json"),
    )
