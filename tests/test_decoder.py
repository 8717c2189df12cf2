"""`ft vae`: a decoder learns pictures that its autoencoder holds badly, the encoder stays, and what is written is read everywhere."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import gradients
import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderKL
from parts import Bases, Make, in_two_parts
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from test_exactness import difference
from torch import Tensor

from finetune import cli, config
from finetune.adapters import decoder
from finetune.adapters.contract import Contract
from finetune.bases import TINY
from finetune.config.precedence import merge_settings
from finetune.data.crop import to_tensor
from finetune.draws import ProbeDraws
from finetune.errors import AccessError, ConfigError, DataError
from finetune.evaluation import round_trip
from finetune.families import autoencoder, autoencoder_file, load, single_file, source
from finetune.header import header_of
from finetune.objectives.objective import per_picture
from finetune.objectives.reconstruction import STRIDES, Reconstruction
from finetune.results import summary
from finetune.results.summary import Summary
from finetune.sampling import draw
from finetune.training.run import begun, train

DECODER: dict[str, Any] = {"method": {"kind": "decoder"}, "data": {"caption_dropout": 0.0}, "run": {"name": "vae", "save_dtype": "fp32"}}


def drawing(seed: int, side: int = 64) -> Image.Image:
    """Thin black lines and circles on white: what an autoencoder of emoji holds at 13 dB."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (4 * side, 4 * side), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(5, 9)):
        pen.line([tuple(map(float, rng.integers(0, 4 * side, 2))) for _ in range(4)], fill="black", width=6)
        radius, (x, y) = float(rng.integers(20, 60)), map(float, rng.integers(0, 4 * side, 2))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline="black", width=6)
    return image.resize((side, side), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of them, without captions."""
    root = tmp_path_factory.mktemp("drawings")
    for side, numbers in {"train": range(16), "held": range(100, 108)}.items():
        (root / side).mkdir()
        for i in numbers:
            drawing(i).save(root / side / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def learned(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """A short run on the embedded base, measured on pictures that it never saw."""
    out = tmp_path_factory.mktemp("learned") / "vae"
    settings = {
        "model": {"base": "tiny"}, "data": {"path": str(drawings / "train"), "holdout": str(drawings / "held")},
        "optim": {"steps": 16, "batch": 2, "lr": 1e-3}, "run": {"out": str(out)},
    }  # fmt: skip
    train(config.parse(merge_settings(DECODER, settings)))
    return summary.read(out).summary


@pytest.fixture
def make(bases: Bases, imgs: Path, tmp_path: Path) -> Make:
    """Settings of a short run on a family's tiny pipeline."""

    def settings(family: str, **more: Any) -> dict[str, Any]:
        small = {
            "model": {"base": str(bases(family))}, "data": {"path": str(imgs), "resolution": 16},
            "optim": {"steps": 4, "batch": 2, "lr": 1e-3}, "run": {"out": str(tmp_path / "out")},
        }  # fmt: skip
        return merge_settings(DECODER, small, more)

    return settings


# What is learned


class Decoder:
    """Answers with the latents' first three channels, each cell twice as wide and high."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)

    def predict(self, *_: object) -> Tensor:
        raise AssertionError("a decoder asks no denoiser")


class Inputs:
    """A batch."""

    captions: Sequence[str | None] = ()

    def __init__(self, **columns: Tensor) -> None:
        self.columns: Mapping[str, Tensor] = columns


DRAWS = ProbeDraws(["a", "b"], 0)


def test_the_error_is_that_of_pixels_and_of_their_differences_at_three_scales() -> None:
    latents, pixels = torch.randn(2, 4, 4, 5), torch.randn(2, 3, 8, 10)
    answer = Decoder().decode(latents)
    error = Reconstruction()(Decoder(), Inputs(x_0=latents, pixels=pixels), DRAWS)
    expected = (answer - pixels).abs().sum()
    for stride in STRIDES:
        for axis in (-1, -2):
            ends = [x.narrow(axis, stride, x.shape[axis] - stride) - x.narrow(axis, 0, x.shape[axis] - stride) for x in (answer, pixels)]
            expected += (ends[0] - ends[1]).abs().sum()
    assert error.shape == pixels.shape and torch.allclose(error.sum(), expected, rtol=1e-5)
    plain = Reconstruction().at(0.5)(Decoder(), Inputs(x_0=latents, pixels=pixels), DRAWS)
    assert torch.equal(plain, (answer - pixels).abs())


def test_nothing_is_learned_outside_of_a_mask() -> None:
    """Nor of what stands beside its edge: no pixel outside has a gradient, and what is there changes none inside."""
    torch.manual_seed(0)
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, 1:3, :2] = torch.tensor([1.0, 0.25])
    latents, pixels = torch.randn(2, 4, 4, 4), torch.randn(2, 3, 8, 8)

    def gradient(pixels: Tensor) -> Tensor:
        leaf = latents.clone().requires_grad_()
        batch = Inputs(x_0=leaf, pixels=pixels, loss_mask=mask)
        per_picture(Reconstruction()(Decoder(), batch, DRAWS), mask).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    plain = gradient(pixels)
    assert not plain[(mask == 0).expand(2, 4, 4, 4)].any()
    assert plain[:, :3][(mask > 0).expand(2, 3, 4, 4)].bool().float().mean() > 0.8, "the signs of a cell's four pixels may add up to 0"
    outside = (mask == 0).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(plain, gradient(torch.where(outside, torch.randn_like(pixels), pixels)))


def test_psnr_is_that_of_the_area_that_counts() -> None:
    before, after = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    after[..., 2:] = 0.2  # a tenth of the range
    assert float(round_trip.psnr(before, after)) == pytest.approx(20 + 10 * np.log10(2), abs=1e-4)
    right = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert float(round_trip.psnr(before, after, right)) == pytest.approx(20, abs=1e-4)
    assert float(round_trip.psnr(before, after, 1 - right)) == round_trip.MOST


def test_a_decoder_learns_pictures_that_it_never_saw(learned: Summary) -> None:
    measure, trip = learned.measure, learned.round_trip
    assert measure and measure.high is not None and trip and trip.low is not None
    assert learned.verdict == "learned" and measure.pictures == trip.pictures == 8
    assert measure.high < -0.1 * measure.base, "a tenth of the error at least, in the worse end of the interval"
    assert trip.low > 0 and trip.run == pytest.approx(trip.base + trip.mean, abs=1e-4) and 12 < trip.base < 15


@pytest.mark.slow
def test_a_decoder_learns_for_long(drawings: Path, tmp_path: Path) -> None:
    """With all that is usual: the rate, the average."""
    for i in range(200, 280):
        drawing(i).save(drawings / "train" / f"{i}.png")
    words = ["vae", str(drawings / "train"), "--base", "tiny", "--holdout", str(drawings / "held"), "--steps", "300"]
    assert cli.run([*words, "--out", str(tmp_path / "out")]) == 0
    ended = summary.read(tmp_path / "out").summary
    assert ended.measure and ended.round_trip and ended.round_trip.low is not None
    assert ended.measure.loss < 0.7 * ended.measure.base and ended.round_trip.low > 1.5


def test_the_worst_pictures_are_shown(learned: Summary) -> None:
    assert learned.sheet and learned.sheet.name == "step-000016.png"
    assert draw.open_png(learned.sheet).height > 8 * 64
    card = (learned.out / "README.md").read_text(encoding="utf-8")
    assert "ft generate --base tiny --vae vae.safetensors" in card and "pipe.vae = AutoencoderKL.from_pretrained('vae')" in card


# What is written


def read_by_diffusers(learned: Summary) -> dict[str, AutoencoderKL]:
    folder, file = learned.written["vae_folder"], learned.written["vae"]
    single = AutoencoderKL.from_single_file(str(file), config=str(folder), local_files_only=True)
    return {"folder": AutoencoderKL.from_pretrained(folder), "file": single}


def test_encoder_and_latents_stay_to_the_bit(learned: Summary) -> None:
    plain = AutoencoderKL.from_pretrained(TINY / "vae")
    pixels = to_tensor(drawing(100))[None]
    for vae in read_by_diffusers(learned).values():
        before, after = plain.state_dict(), vae.state_dict()
        assert before.keys() == after.keys() and all(t.dtype == torch.float32 for t in after.values())
        assert {k.partition(".")[0] for k in before if not torch.equal(before[k], after[k])} == {"decoder"}
        for a, b in zip(autoencoder.encode(plain, pixels), autoencoder.encode(vae, pixels), strict=True):
            assert torch.equal(a, b)


def test_both_forms_hold_what_was_trained(learned: Summary) -> None:
    latents = torch.randn(1, 4, 16, 16)
    state = load_file(sorted((learned.out / "checkpoints").glob("step-*"))[-1] / "state.safetensors")
    for vae in read_by_diffusers(learned).values():
        assert all(torch.equal(t, state[f"trainable/vae.decoder.{k}"]) for k, t in vae.decoder.state_dict().items())
    pictures = [autoencoder.decode(vae, latents) for vae in read_by_diffusers(learned).values()]
    assert torch.equal(*pictures)


def test_the_file_has_the_original_names_and_says_what_it_is(learned: Summary) -> None:
    """As `vae-ft-mse-840000-ema-pruned.safetensors` has them, without a prefix; projections of attention are convolutions."""
    head = header_of(learned.written["vae"])
    assert {"encoder.conv_in.weight", "decoder.up.2.block.0.conv1.weight", "decoder.mid.attn_1.q.weight", "post_quant_conv.bias"} <= (
        head.shapes.keys()
    )
    assert head.shapes["decoder.mid.attn_1.q.weight"] == (64, 64, 1, 1)
    assert head.metadata["modelspec.architecture"] == "stable-diffusion-v1/vae"
    contract = Contract.of(head.metadata)
    assert contract and contract.base == "tiny" and contract.trained_steps == 16 and contract.adapter is None
    for file in (learned.written["vae"], *learned.written["vae_folder"].iterdir()):
        assert str(learned.out.parent).encode() not in file.read_bytes(), "no path"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux-dev", "sd35-medium"])
def test_diffusers_reads_the_original_names_at_full_size(name: str, tmp_path: Path) -> None:
    """With its own table of names, which knows four levels and two layers a level; random weights."""
    config_ = single_file.shipped_configs(name)["vae/config.json"]
    vae = AutoencoderKL.from_config(config_)
    tensors = {k: t.contiguous() for k, t in autoencoder_file.original(vae.state_dict()).items()}
    assert ("quant_conv.weight" in tensors) == config_.get("use_quant_conv", True)
    assert {"decoder.up.3.upsample.conv.weight", "decoder.up.0.block.0.nin_shortcut.weight", "encoder.down.2.downsample.conv.bias"} <= (
        tensors.keys()
    )
    save_file(tensors, tmp_path / "vae.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_), encoding="utf-8")
    read = AutoencoderKL.from_single_file(str(tmp_path / "vae.safetensors"), config=str(tmp_path), local_files_only=True).state_dict()
    assert read.keys() == vae.state_dict().keys() and all(torch.equal(t, read[k]) for k, t in vae.state_dict().items())


@pytest.mark.parametrize("family", ["sd", "flux", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sdxl", "sd3"))])
def test_every_familys_files_come_back(make: Make, bases: Bases, family: str, tmp_path: Path) -> None:
    ended = train(config.parse(make(family, optim={"ema": 0.5}, data={"holdout": "0.3"})))
    assert ended["files"] == ["best", "vae", "vae_folder"]
    where = source.resolve_base(str(bases(family)))
    states = []
    for kind in ("vae", "vae_folder"):
        other = load.family(autoencoder_file.with_autoencoder(where, Path(ended[kind])))
        states.append(other.parts.load("vae").state_dict())
    before = load.family(where).parts.load("vae").state_dict()
    assert states[0].keys() == states[1].keys() == before.keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in before)
    assert {k.partition(".")[0] for k in before if not torch.equal(before[k], states[0][k])} == {"decoder"}
    saved = load_file(tmp_path / "out" / "checkpoints" / "step-00000004" / "state.safetensors")
    average = {k: t for k, t in saved.items() if k.startswith("ema/")}
    assert all(torch.equal(t, states[0][k.removeprefix("ema/vae.")]) for k, t in average.items()), "the average is what is written"
    assert any(not torch.equal(t, saved[k.replace("ema/", "trainable/")]) for k, t in average.items())


def test_a_run_in_two_parts_is_a_run(make: Make, tmp_path: Path) -> None:
    whole, parts = in_two_parts(make("sd", optim={"ema": 0.5}, run={"checkpoint_every": 2}, data={"holdout": "0.3"}), tmp_path)
    assert whole["files"] == parts["files"] and whole["round_trip_psnr"] == parts["round_trip_psnr"]
    for a, b in ((Path(whole[kind]), Path(parts[kind])) for kind in whole["files"]):
        inside = [p.relative_to(a) for p in a.rglob("*")] if a.is_dir() else [Path()]
        assert inside and all((a / f).read_bytes() == (b / f).read_bytes() for f in inside)


def test_recomputed_activations_give_the_same_gradient(make: Make) -> None:
    plain, less = (gradients.gradients(make("sd", run={"gradient_checkpointing": on}), torch.float64, 0) for on in (False, True))
    assert difference(plain, less) < 1e-12


# What is asked for


def test_no_other_network_is_read(make: Make, bases: Bases, tmp_path: Path) -> None:
    """Neither loaded nor hashed: they need not be there."""
    base = shutil.copytree(bases("sd"), tmp_path / "base")
    for part in ("unet", "text_encoder"):
        for file in (base / part).glob("*.safetensors"):
            file.unlink()
    ended = train(config.parse(make("sd", model={"base": str(base)})))
    identity = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["identity"]
    assert Path(ended["vae"]).exists() and identity["base weights and configs"].keys() == {"vae"}


def test_no_other_weights_are_downloaded(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def download(hub_id: str, dry_run: bool = False, **how: Any) -> object:
        asked.append(how["allow_patterns"])
        return [] if dry_run else str(TINY)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    from finetune.preparation import base

    base.located(config.parse(make("sd", model={"base": "owner/name"})))
    assert [p for p in asked[-1] if "safetensors" in p] == ["vae/*.safetensors"]
    base.located(config.parse(merge_settings(make("sd", model={"base": "owner/name"}), {"method": {"kind": "lora"}})))
    assert "unet/*.safetensors" in asked[-1]


WRONG: dict[str, dict[str, Any]] = {
    "run.sample_prompt": {"run": {"sample_prompt": ["a disc"]}},
    "data.trigger": {"data": {"trigger": "sks"}},
    "data.inpaint_mask": {"data": {"inpaint_mask": "file"}},
    "data.caption_dropout": {"data": {"caption_dropout": 0.2}},
    "data.shuffle_tags": {"data": {"shuffle_tags": True}},
    "subject.token": {"subject": {"token": "sks", "class_word": "disc"}},
    "method.rank": {"method": {"rank": 4}},
    "method.start": {"method": {"start": "a.safetensors"}},
    "method.text_encoder": {"method": {"text_encoder": True}},
    "method.new_tokens": {"method": {"new_tokens": ["<x>"]}},
    "objective.weighting": {"objective": {"weighting": "min-snr"}},
    "objective.noise_offset": {"objective": {"noise_offset": 0.1}},
    "objective.preserve": {"objective": {"preserve": "dog"}},
    "--save-dtype fp16": {"run": {"save_dtype": "fp16"}},
    "--save-dtype bf16": {"run": {"save_dtype": "bf16"}},
    "--precision bf16": {"run": {"precision": "bf16"}},
    "--format single": {"run": {"format": "single"}},
    "optim.masters bf16": {"optim": {"masters": "bf16"}},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_decoder_has_no_use_for_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        config.parse(merge_settings(DECODER, {"data": {"path": "imgs"}}, WRONG[name]))


@pytest.mark.parametrize("name", ["checkpoints", "samples"])
def test_a_name_that_a_run_has_for_a_folder_is_refused_before_it_trains(name: str, imgs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["vae", str(imgs), "--base", "tiny", "--name", name, "--dry-run"]) == 2
    assert f"--name {name}: is what a run calls another of its folders" in capsys.readouterr().err


def test_a_settings_command_is_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert config.parse(merge_settings(DECODER, {"data": {"path": "imgs"}})).command == "vae"
    assert cli.run(["lora", "--data", str(tmp_path), "--recipe", "tiny-vae"]) == 2
    assert "those of `ft vae`, not of `ft lora`" in capsys.readouterr().err


def test_a_check_names_the_remedy(drawings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "check", "--data", str(drawings / "held"), "--vae", "tiny", "--caption", "a drawing", "--json"]
    assert cli.run(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["autoencoder"]["remedy"] == f"ft vae --data {drawings / 'held'} --base tiny" and said["autoencoder"]["mean_psnr"] < 15
    assert any(said["autoencoder"]["remedy"] in note["what"] for note in said["notes"])


# Another autoencoder


def test_a_check_tries_what_a_run_made(learned: Summary, drawings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the job's base, and beside what the base's own holds."""
    held: dict[str, float] = {}
    for vae in ("tiny", learned.out):
        words = ["data", "check", "--data", str(drawings / "held"), "--base", "tiny", "--caption", "a drawing", "--json"]
        assert cli.run([*words, "--vae", str(vae)]) == 0
        held[str(vae)] = json.loads(capsys.readouterr().out)["autoencoder"]["mean_psnr"]
    assert held[str(learned.out)] > held["tiny"] + 0.5


def test_a_file_for_another_family_is_refused_though_its_shapes_fit(learned: Summary, bases: Bases, tmp_path: Path) -> None:
    """Those of 1.5 and XL are alike but for a scale that no file has."""
    file, where = tmp_path / "vae.safetensors", source.resolve_base("tiny")
    written = learned.written["vae"]
    said = header_of(written).metadata
    save_file(load_file(written), file, said | {"ft.contract": said["ft.contract"].replace("stable-diffusion", "stable-diffusion-xl")})
    with pytest.raises(AccessError, match="was trained for stable-diffusion-xl, and tiny is stable-diffusion"):
        decoder.in_place(where, file)
    assert decoder.in_place(where, written).vae_id == written.name


def test_another_autoencoder_draws_the_same_latents_otherwise(learned: Summary, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = []
    for name, more in {"a": [], "b": ["--vae", str(learned.out)], "c": ["--vae", str(learned.written["vae_folder"])]}.items():
        assert cli.run(["generate", "red apple", "--base", "tiny", "--steps", "2", "--out", str(tmp_path / name), "--json", *more]) == 0
        drawn = json.loads(capsys.readouterr().out)["pictures"][0]
        assert drawn.get("vae") == {"a": None, "b": "vae.safetensors", "c": "vae"}[name]
        pictures.append(np.asarray(draw.open_png(Path(drawn["path"]))).astype(int))
    assert np.array_equal(pictures[1], pictures[2]) and abs(pictures[0] - pictures[1]).max() > 8


def test_a_run_with_another_autoencoder_draws_and_goes_on_with_it(
    bases: Bases, imgs: Path, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config.parse(make("sd", optim={"lr": 0.05}, run={"out": str(tmp_path / "vae")})))
    words = ["lora", "--data", str(imgs), "--base", str(bases("sd")), "--resolution", "16", "--steps", "2", "--no-holdout", "--json"]
    words += ["--sample-prompt", "red disc", "--batch", "2"]
    ended, hashes, pictures = {}, {}, {}
    for name, more in {"with": ["--vae", str(tmp_path / "vae")], "without": []}.items():
        out = tmp_path / name
        assert cli.run([*words, *more, "--out", str(out)]) == 0
        ended[name] = json.loads(capsys.readouterr().out)
        hashes[name] = json.loads((out / "summary.json").read_text(encoding="utf-8"))["identity"]["base weights and configs"]
        pictures[name] = [np.asarray(draw.open_png(p)) for p in sorted((out / "samples").glob("step-*-*.png"))]
    assert {part for part in hashes["with"] if hashes["with"][part] != hashes["without"][part]} == {"vae"}
    states = [load_file(ended[name]["adapter"]) for name in ended]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0]), "latents are the same, and so is what is learned of them"
    assert len(pictures["with"]) == 2
    for path in (tmp_path / "with" / "samples").glob("step-*-*.png"):
        with Image.open(path) as drawn:
            assert json.loads(drawn.info["parameters"])["vae"] == "vae.safetensors"
    assert all(not np.array_equal(a, b) for a, b in zip(pictures["with"], pictures["without"], strict=True))
    assert cli.run([*words, "--vae", str(tmp_path / "vae"), "--out", str(tmp_path / "with")]) == 0
    said = capsys.readouterr().err
    assert "already finished" in said and f"--vae {tmp_path / 'vae'}" in said
    assert cli.run([*words, "--steps", "3", "--out", str(tmp_path / "with")]) == 2, "without it, it is another run"


Damage = Callable[[dict[str, Tensor]], dict[str, Tensor]]
FILES: dict[str, tuple[Damage, str]] = {
    "a denoiser": (lambda state: {f"model.diffusion_model.{k}": t for k, t in state.items()}, "lacks encoder.conv_in.weight"),
    "of other channels": (lambda state: state | {"decoder.conv_in.weight": torch.zeros(8, 16, 3, 3)}, r"is \[8, 16, 3, 3\]"),
    "a part": (lambda state: {k: t for k, t in state.items() if "conv_out" not in k}, "lacks .*conv_out"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_does_not_fit_is_refused_before_anything_is_loaded(bases: Bases, tmp_path: Path, name: str) -> None:
    where = source.resolve_base(str(bases("sd")))
    change, said = FILES[name]
    save_file(change(load_file(where.weights("vae")[0])), tmp_path / "x.safetensors")
    with pytest.raises(AccessError, match=said):
        autoencoder_file.with_autoencoder(where, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(b""), "not a readable safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not a readable safetensors file"),
        (
            lambda path: save_file({k: t for k, t in load_file(path).items() if k != "decoder.conv_in.weight"}, path),
            "lacks decoder.conv_in",
        ),
        (lambda path: save_file({k: t.to(torch.int8) for k, t in load_file(path).items()}, path), "is in I8"),
        (
            lambda path: path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors")),
            "holds no diffusion_pytorch_model.safetensors",
        ),
    ],
    ids=["empty", "cut off", "a weight less", "whole numbers", "a variant alone"],
)
def test_a_folder_with_damaged_weights_is_refused_by_name(bases: Bases, tmp_path: Path, change: Callable[[Path], Any], said: str) -> None:
    """By the flag and not by the base, and before anything is loaded."""
    where = source.resolve_base(str(bases("sd")))
    folder = shutil.copytree(where.folder / "vae", tmp_path / "vae")
    change(folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(AccessError, match=rf"--vae {tmp_path}.*{said}"):
        autoencoder_file.with_autoencoder(where, folder)


@pytest.mark.parametrize("key", ["latent_channels", "scaling_factor", "block_out_channels"])
def test_a_folder_that_does_not_fit_is_refused_by_name(bases: Bases, tmp_path: Path, key: str) -> None:
    where = source.resolve_base(str(bases("sd")))
    folder = shutil.copytree(where.folder / "vae", tmp_path / "vae")
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts[key] = {"latent_channels": 16, "scaling_factor": 0.3, "block_out_channels": [8, 16]}[key]
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(AccessError, match=f"has {key}"):
        autoencoder_file.with_autoencoder(where, folder)


def test_missing_files_and_pickles_are_refused(bases: Bases, tmp_path: Path) -> None:
    where = source.resolve_base(str(bases("sd")))
    torch.save({"encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "x.ckpt")
    for path, said in {"nosuch": "no such file", "x.ckpt": "others can run code", ".": "holds no autoencoder"}.items():
        with pytest.raises(AccessError, match=said):
            autoencoder_file.with_autoencoder(where, tmp_path / path)
    (tmp_path / "run.yaml").write_text("{}", encoding="utf-8")
    assert cli.run(["generate", "x", "--vae", str(tmp_path)]) == DataError.exit_code


def test_diffusers_keys_and_whole_checkpoints_are_read_too(bases: Bases, tmp_path: Path) -> None:
    where = source.resolve_base(str(bases("sd")))
    state = load_file(where.weights("vae")[0])
    original = autoencoder_file.original(state)
    fingerprints: dict[str, str] = {}
    earlier = {autoencoder_file.earlier_key(k): t for k, t in state.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.bias" in earlier
    forms = {"diffusers": state, "earlier": earlier, "whole": {f"first_stage_model.{k}": t for k, t in original.items()}, "half": original}
    for name, tensors in forms.items():
        save_file({k: t.half() if name == "half" else t for k, t in tensors.items()}, tmp_path / f"{name}.safetensors")
        other = autoencoder_file.with_autoencoder(where, tmp_path / f"{name}.safetensors")
        fingerprints[name] = other.fingerprint("vae")
        read = load.family(other).parts.load("vae").state_dict()
        expected = {k: t.half().float() if name == "half" else t for k, t in state.items()}
        assert read.keys() == state.keys() and all(torch.equal(t, expected[k]) for k, t in read.items())
    assert fingerprints["diffusers"] == fingerprints["whole"] != fingerprints["half"], "the weights tell them apart"


def test_a_damaged_copy_in_the_cache_is_made_anew(bases: Bases, own_cache: None, tmp_path: Path) -> None:
    where = source.resolve_base(str(bases("sd")))
    save_file(load_file(where.weights("vae")[0]), tmp_path / "x.safetensors")
    place = cast(Path, autoencoder_file.with_autoencoder(where, tmp_path / "x.safetensors").vae)
    good = (place / autoencoder_file.WEIGHTS).read_bytes()
    (place / autoencoder_file.WEIGHTS).write_bytes(good[:-4] + b"1234")
    assert autoencoder_file.with_autoencoder(where, tmp_path / "x.safetensors").vae == place
    assert (place / autoencoder_file.WEIGHTS).read_bytes() == good


def test_a_whole_model_takes_its_autoencoder_along(bases: Bases, make: Make, imgs: Path, tmp_path: Path) -> None:
    made = train(config.parse(make("sd", optim={"lr": 0.05}, run={"out": str(tmp_path / "vae")})))
    full = merge_settings(make("sd"), {"method": {"kind": "full"}, "model": {"vae": made["vae_folder"]}, "optim": {"steps": 1}})
    folder = Path(train(config.parse(full))["model"])
    assert (folder / "vae" / autoencoder_file.WEIGHTS).read_bytes() == (Path(made["vae_folder"]) / autoencoder_file.WEIGHTS).read_bytes()


def test_captions_are_neither_read_nor_asked_for(make: Make, tmp_path: Path) -> None:
    mute, said = tmp_path / "mute", tiny.folder(tmp_path / "said", 3)
    shutil.copytree(said, mute, ignore=shutil.ignore_patterns("*.txt"))
    for folder in (mute, said):
        training = begun(config.parse(make("sd", data={"path": str(folder)}, run={"out": str(tmp_path / f"out-{folder.name}")}))).training
        assert {s.captions for s in training.encoded.samples} == {("",)} and set(training.step.nets) == {"vae"}
        assert not training.step.cached
