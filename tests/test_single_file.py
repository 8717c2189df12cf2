"""Single-file checkpoints: unpacked to the same weights with the package's own configs, or refused by name."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import original_layout
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from finetune import files
from finetune.errors import AccessError, ConfigError, FinetuneError
from finetune.families import load, single_file, source, unets
from finetune.families.facts import stable_diffusion, stable_diffusion_xl
from finetune.results import stored

PROBE, FIRST = unets.PROBE, unets.FIRST
XL = ("conditioner.embedders.0.x", "conditioner.embedders.1.x")


@pytest.fixture
def tiny_configs(bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny bases' configs in the place of the real ones."""
    root = tmp_path / "configs"
    for name, of in (("sd15", "sd"), ("sd15-inpainting", "sd-inpainting"), ("sdxl", "sdxl"), ("sd21", "sd-v")):
        base = bases(of)
        files = [base / "model_index.json", *base.glob("*/config.json"), *base.glob("*/scheduler_config.json")]
        files += base.glob("*/tokenizer_config.json")
        root.mkdir(exist_ok=True)
        (root / f"{name}.json").write_text(json.dumps({f.relative_to(base).as_posix(): json.loads(f.read_text()) for f in files}))
    shutil.copytree(bases("sd") / "tokenizer", root / "clip", ignore=shutil.ignore_patterns("tokenizer_config.json"))
    monkeypatch.setattr(single_file, "CONFIGS", root)
    monkeypatch.setattr(stable_diffusion, "SIZES", {(16, 4): "sd15", (16, 9): "sd15-inpainting"})
    monkeypatch.setattr(stable_diffusion_xl, "SIZES", {(40, 4): "sdxl"})


@pytest.mark.usefixtures("tiny_configs")
@pytest.mark.filterwarnings("ignore")
def test_a_single_file_of_xl_is_the_base_it_was_made_of(bases: Callable[[str], Path], tmp_path: Path) -> None:
    found = source.resolve_base(str(original_layout.write_xl(bases("sdxl"), tmp_path / "xl.safetensors")))
    assert found.spec.name == "stable-diffusion-xl"
    ours, whole = load.family(found), load.family(source.resolve_base(str(bases("sdxl"))))
    for part in found.spec.parts:
        here, there = ours.parts.load(part).state_dict(), whole.parts.load(part).state_dict()
        assert here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here), part
    for key, value in ours.texts(["red disc"])[0].items():
        assert torch.equal(value, whole.texts(["red disc"])[0][key])


@pytest.mark.usefixtures("tiny_configs")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("of", ["sd", "sd-inpainting", "sdxl"])
def test_a_full_fine_tune_is_the_same_as_a_folder_and_as_a_single_file(
    train: Callable[..., dict[str, Any]], bases: Callable[[str], Path], of: str, tmp_path: Path
) -> None:
    full: dict[str, Any] = {"model": {"base": str(bases(of))}, "method": {"kind": "full", "text_encoder": True}}
    folder = train(**full)["model"]
    file = train(**full, run={"format": "single", "out": str(tmp_path / "single")})["model"]
    here, there = (load.family(source.resolve_base(m)).parts for m in (folder, file))
    assert file.endswith(".safetensors")
    for part in ("unet", "vae", "text_encoder"):
        one, other = here.load(part).state_dict(), there.load(part).state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), part


@pytest.mark.usefixtures("tiny_configs")
@pytest.mark.filterwarnings("ignore")
def test_a_single_file_is_the_base_it_was_made_of(base: Path, tmp_path: Path) -> None:
    path = original_layout.write(base, tmp_path / "model.safetensors")
    found = source.resolve_base(str(path))
    assert found.id == "model" and found.spec.name == "stable-diffusion"
    ours, whole = StableDiffusionPipeline.from_pretrained(found.folder), StableDiffusionPipeline.from_pretrained(base)
    for part in ("unet", "vae", "text_encoder"):
        here, there = getattr(ours, part).state_dict(), getattr(whole, part).state_dict()
        assert here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here), part
    assert load.family(found).schedule().prediction_type == "epsilon"
    stamp = (found.folder / "model_index.json").stat().st_mtime_ns
    os.utime(found.folder, (0, 0))
    assert (source.resolve_base(str(path)).folder / "model_index.json").stat().st_mtime_ns == stamp, "unpacked once"
    (entry,) = [e for e in stored.entries() if e.path == found.folder]
    assert entry.used > 0 and stored.about(entry) == "unpacked StableDiffusionPipeline", "its use is noted"
    v = load.family(source.resolve_base(str(path), prediction="v_prediction"))
    assert v.schedule().prediction_type == "v_prediction" and v.source.folder != found.folder


@pytest.mark.usefixtures("tiny_configs")
@pytest.mark.filterwarnings("ignore")
def test_a_single_file_of_the_second_version(bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stable_diffusion, "SIZES", {(16, 4): "sd21"})
    path = original_layout.write(bases("sd-v"), tmp_path / "model.safetensors", second=True)
    ours = load.family(source.resolve_base(str(path), prediction="v_prediction"))
    whole = load.family(source.resolve_base(str(bases("sd-v"))))
    assert ours.schedule().prediction_type == "v_prediction"
    for part in ours.spec.parts:
        here, there = ours.parts.load(part).state_dict(), whole.parts.load(part).state_dict()
        assert here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here), part


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {n: torch.ones(2, 2) for n in names}


KINDS = [
    ({PROBE: torch.ones(4, 768)} | tensors("cond_stage_model.x"), {}, None, "sd15", "epsilon"),
    ({PROBE: torch.ones(4, 768)} | tensors("cond_stage_model.x"), {"modelspec.prediction_type": "v"}, None, "sd15", "v_prediction"),
    ({PROBE: torch.ones(4, 768), FIRST: torch.ones(4, 9, 3, 3)} | tensors("cond_stage_model.x"), {}, None, "sd15-inpainting", "epsilon"),
    ({PROBE: torch.ones(4, 2048), FIRST: torch.ones(4, 9, 3, 3)} | tensors(*XL), {}, None, "sdxl-inpainting", "epsilon"),
    ({PROBE: torch.ones(4, 1024)} | tensors("cond_stage_model.x"), {}, "epsilon", "sd21-base", "epsilon"),
    ({PROBE: torch.ones(4, 1024)} | tensors("cond_stage_model.x"), {}, "v_prediction", "sd21", "v_prediction"),
    ({PROBE: torch.ones(4, 2048)} | tensors(*XL), {}, None, "sdxl", "epsilon"),
    ({PROBE: torch.ones(4, 2048)} | tensors(*XL, "v_pred"), {}, None, "sdxl", "v_prediction"),
    (tensors("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "model.diffusion_model.guidance_in.in_layer.weight",
             "text_encoders.clip_l.x", "text_encoders.t5xxl.x"), {}, None, "flux-dev", "flow"),
    (tensors("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "text_encoders.clip_l.x", "text_encoders.t5xxl.x"), {}, None,
     "flux-schnell", "flow"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "metadata", "said", "name", "prediction"), KINDS, ids=[k[3] + str(k[2]) for k in KINDS])
def test_the_keys_tell_the_base(
    state: dict[str, torch.Tensor], metadata: dict[str, str], said: str | None, name: str, prediction: str, tmp_path: Path
) -> None:
    save_file(state, tmp_path / "x.safetensors", metadata or None)
    assert single_file.identify(tmp_path / "x.safetensors", said).name == name
    of = load.family(source.resolve_base(str(tmp_path / "x.safetensors"), weights=False, prediction=said))
    assert of.schedule().prediction_type == prediction
    assert of.tokens("a photo of an astronaut riding a horse") == (10 if prediction == "flow" else 8)


@pytest.mark.parametrize(
    ("state", "said", "message"),
    [
        (tensors("lora_unet_x.alpha"), None, r"not a checkpoint of a known family \(its keys begin lora_unet_x\.alpha\)"),
        ({PROBE: torch.ones(4, 1024)} | tensors("cond_stage_model.x"), None, "does not say whether it predicts epsilon or v"),
        ({PROBE: torch.ones(4, 16)}, None, "reads text of width 16"),
        ({PROBE: torch.ones(4, 1280)}, None, "reads text of width 1280"),  # the refiner of Stable Diffusion XL
        ({PROBE: torch.ones(4, 768), FIRST: torch.ones(4, 8, 3, 3)}, None, "whose U-Net reads 8 channels"),  # InstructPix2Pix
        ({PROBE: torch.ones(4, 768)}, None, "holds no text encoder"),
        (tensors("double_blocks.0.img_attn.qkv.weight"), None, "holds no text encoder"),
        (
            {PROBE: torch.ones(4, 2048)} | tensors(*XL, "v_pred"), "epsilon",
            "says v_prediction",
        ),
    ],
)  # fmt: skip
def test_other_files_are_refused(state: dict[str, torch.Tensor], said: str | None, message: str, tmp_path: Path) -> None:
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(FinetuneError, match=message):
        source.resolve_base(str(tmp_path / "x.safetensors"), prediction=said)


def test_a_damaged_file_is_refused(tmp_path: Path, base: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(AccessError, match=r"x\.safetensors: not a readable safetensors file"):
        source.resolve_base(str(tmp_path / "x.safetensors"))
    with pytest.raises(ConfigError, match="this base says its own"):
        source.resolve_base(str(base), prediction="epsilon")


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch hacked",)


@pytest.mark.usefixtures("tiny_configs")
@pytest.mark.filterwarnings("ignore")
def test_a_pickle_needs_a_flag_and_gives_its_tensors_alone(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = load_file(original_layout.write(base, tmp_path / "model.safetensors"))
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "model.ckpt")
    with pytest.raises(AccessError, match="others can run code") as refused:
        source.resolve_base("model.ckpt")
    assert "--allow-pickle" in refused.value.hint
    found = source.resolve_base("model.ckpt", allow_pickle=True)
    assert found.id == "model"
    there = load.family(source.resolve_base("model.safetensors")).parts.load("unet").state_dict()
    assert all(torch.equal(v, there[k]) for k, v in load.family(found).parts.load("unet").state_dict().items())
    torch.save({"state_dict": state, "x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(AccessError, match=r"not a checkpoint of tensors alone .*nothing in it was run"):
        source.resolve_base("evil.ckpt", allow_pickle=True)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.usefixtures("tiny_configs")
@pytest.mark.filterwarnings("ignore")
def test_a_single_file_is_drawn_with_as_it_was_trained(base: Path, tmp_path: Path, train: Callable[..., Any]) -> None:
    from finetune import cli

    path = original_layout.write(base, tmp_path / "model.safetensors")
    adapter = train(model={"base": str(path), "prediction_type": "v_prediction"}, optim={"lr": 1e-2})["adapter"]
    assert cli.run(["generate", "--adapter", adapter, "--prompt", "x", "--steps", "1", "--out", str(tmp_path / "p")]) == 0
    assert cli.run(["adapter", "verify", adapter]) == 0
    assert cli.run(["adapter", "verify", adapter, "--base", str(path)]) == 0
    assert cli.run(["adapter", "verify", adapter, "--base", str(base)]) == 3  # which predicts epsilon


def test_several_processes_may_publish_one_folder(tmp_path: Path) -> None:
    """Forty at once, each under its own temporary name, as processes have."""
    gate = threading.Barrier(8, timeout=60)

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "a").write_text("whole")

    def one(i: int) -> str:
        gate.wait()
        files.publish(tmp_path / f"round-{i // 8}", fill)
        return (tmp_path / f"round-{i // 8}" / "a").read_text()

    began = mock.patch("finetune.files._began", lambda process: 0)
    with mock.patch("os.getpid", threading.get_ident), began, ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(40))) == {"whole"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"round-{i}" for i in range(5)]


def test_a_pickle_with_tied_weights_is_taken_out_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    state = load_file(original_layout.write(base, tmp_path / "model.safetensors"))
    first = next(iter(state))
    torch.save({"state_dict": state | {"tied": state[first], "cut": state[first][:1]}}, tmp_path / "model.ckpt")
    made = single_file.unpickle(tmp_path / "model.ckpt")
    found = load_file(made)
    assert found.keys() == state.keys() | {"tied", "cut"} and torch.equal(found["tied"], state[first])
    assert single_file.unpickled(tmp_path / "model.ckpt") == made
    made.write_bytes(made.read_bytes()[:-1] + b"\1")
    assert single_file.unpickled(tmp_path / "model.ckpt") is None, "it is damaged"
