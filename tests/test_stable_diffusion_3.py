"""Stable Diffusion 3 and 3.5: what it has that no other family has. The rest is in the tests of every family."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradients
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers as to_diffusers
from parts import Bases, family
from PIL import Image
from safetensors.torch import load_file, save_file
from test_families import Recorder, tensors
from test_interop import output, through_ours
from torch import Tensor

from finetune import config
from finetune.adapters import keys, model
from finetune.adapters.convert import convert
from finetune.adapters.flat import flat
from finetune.adapters.fused import lora
from finetune.adapters.inspect import inspect
from finetune.adapters.landing import shape_misfit, shapes_of
from finetune.adapters.read import read
from finetune.errors import AccessError, ConfigError, DataError
from finetune.families import load, single_file, source
from finetune.families.catalogue import of_name
from finetune.families.facts import stable_diffusion_3 as facts
from finetune.families.family import Family
from finetune.families.names.stable_diffusion_3 import NAMES
from finetune.families.stable_diffusion_3_file import as_one_file, transformer
from finetune.objectives.flow import Flow
from finetune.preparation import data
from finetune.sampling import draw, generate
from finetune.training import run

PROMPT = "red disc"
pytestmark = pytest.mark.filterwarnings("ignore")  # the readers' own
Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As 3 medium is kept by many: without T5, norms of queries and blocks that attend twice."""
    folder = tmp_path_factory.mktemp("without") / "t5"
    return tiny.stable_diffusion_3(folder, t5=False, dual_attention_layers=(), qk_norm=None)


# What it is told


@pytest.mark.parametrize("t5", [True, False])
@torch.no_grad()
def test_training_tells_it_what_the_pipeline_does_at_any_size(t5: bool, bases: Bases, without_t5: Path) -> None:
    """Captions and none, with T5 and without, on a square and on an oblong: texts, summaries, time and latents."""
    folder = bases("sd3") if t5 else without_t5
    lacks = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}  # diffusers wants to be told
    ours, pipe = family(folder), DiffusionPipeline.from_pretrained(folder, **lacks)
    pipe.set_progress_bar_config(disable=True)
    seen = Recorder(pipe.transformer)
    rows = ours.texts(["", PROMPT])
    assert rows[0]["hidden"].shape == (tiny.WINDOW + (tiny.WINDOW if t5 else 256), 48)
    window = {"max_sequence_length": tiny.WINDOW} if t5 else {}  # 256 by itself, of zeros where there is no T5
    for height, width in ((16, 16), (16, 40)):
        seen.calls.clear()
        noise = torch.Generator().manual_seed(0)
        pipe(PROMPT, height=height, width=width, num_inference_steps=2, generator=noise, output_type="latent", **window)
        for arguments, answer in list(seen.calls):
            t = arguments["timestep"].double() / 1000
            mine = ours.predict({"denoiser": pipe.transformer}, arguments["hidden_states"], t, ours.condition(rows, {}))
            told = tensors(seen.calls[-1][0])
            assert told.keys() == tensors(arguments).keys() == {"hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"}
            assert all((told[k] - arguments[k]).abs().max() < 1e-5 for k in told)
            assert (mine - answer).abs().max() < 1e-5


def test_a_base_without_t5_has_no_t5(without_t5: Path, train: Train, tmp_path: Path) -> None:
    """It trains, its tokens are those of two text encoders, and what is written of it lacks T5 too."""
    of = family(without_t5)
    assert of.spec.text == ("text_encoder", "text_encoder_2") and of.spec.counted == "text_encoder" and of.window == tiny.WINDOW
    assert "has no text_encoder_3: it is trained and drawn without" in of.notes()[0]
    whole = train(model={"base": str(without_t5)}, method={"kind": "full"}, optim={"steps": 1}, data={"resolution": 16})["model"]
    DiffusionPipeline.from_pretrained(whole, text_encoder_3=None, tokenizer_3=None)
    assert family(Path(whole)).spec.text == of.spec.text
    more = {"method": {"new_tokens": ["<x>"], "kind": "none"}, "data": {"resolution": 16, "trigger": "<x>"}, "optim": {"steps": 1}}
    word = train(model={"base": str(without_t5)}, run={"out": str(tmp_path / "word")}, **more)
    assert load_file(word["embedding"]).keys() == {"clip_l", "clip_g"}
    card = (Path(word["out"]) / "README.md").read_text(encoding="utf-8")
    assert "takes no files of new tokens" in card and "```python" not in card and "`embedding:" in card
    assert not hasattr(StableDiffusion3Pipeline, "load_textual_inversion"), "or the card may say how"
    assert "with text_encoder_3=None, tokenizer_3=None" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_another_shift_or_patch_is_refused(bases: Bases, tmp_path: Path) -> None:
    for part, key, value in (("scheduler/scheduler_config", "use_dynamic_shifting", True), ("transformer/config", "patch_size", 4)):
        folder = tmp_path / key
        shutil.copytree(bases("sd3"), folder)
        path = folder / f"{part}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        with pytest.raises(AccessError, match=f"has {key}"):
            source.resolve_base(str(folder))
    schedule = family(bases("sd3")).schedule()
    assert isinstance(schedule, Flow) and schedule.shift == 3.0


def test_a_side_that_it_has_no_positions_for_is_refused(settings: Callable[..., dict[str, Any]], bases: Bases, tmp_path: Path) -> None:
    """96 pixels of the tiny one's; 3 medium and 3.5 large have 3072, 3.5 medium 6144."""
    of = family(bases("sd3"))
    assert of.edition.longest == 96 and [facts.SPEC.edition(shipped(n)).longest for n in ("sd3-medium", "sd35-medium")] == [3072, 6144]
    draw.check_side(of, 96)
    with pytest.raises(ConfigError, match="knows no sides of more than 96 pixels"):
        draw.check_side(of, 112)
    for width, said in (64, "becomes 112 pixels long, and sd3 knows no sides of more than 96"), (128, "becomes 156 pixels long"):
        Image.new("RGB", (width, 64)).save(tmp_path / "a.png")
        setup = settings(model={"base": str(bases("sd3"))}, data={"path": str(tmp_path), "caption": "x", "resolution": 112})
        job = config.parse(setup)
        with pytest.raises(ConfigError, match=said):  # before a network is loaded
            data.cut(job, of, data.gathered(job), 1)


# What trains


def test_what_nobody_reads_does_not_train(settings: Callable[..., dict[str, Any]], bases: Bases, tmp_path: Path) -> None:
    """The last block's queries of the text, and a projection that the original has not; all else has a gradient."""
    small = {"model": {"base": str(bases("sd3"))}, "data": {"resolution": 16}, "optim": {"steps": 10}}
    for method in ({"targets": "all-linear"}, {"kind": "full", "text_encoder": True}):
        runner = run.begun(config.parse(settings(**small, method=method, run={"out": str(tmp_path / str(len(method)))})))
        names = list(runner.training.trainable)
        assert not [n for n in names if "blocks.2.attn.add_q_proj" in n or "blocks.2.attn.norm_added_q" in n]
        assert [n for n in names if "blocks.1.attn.add_q_proj" in n] and [n for n in names if "blocks.0.attn2.to_q" in n]
        assert not [n for n in names if n.startswith("text_encoder.text_projection")]
    runner.train()  # the canary stops it at what has no gradient
    assert "text_encoder_2.text_projection.weight" in names


def test_gradient_checkpointing_changes_no_gradient_of_it(settings: Callable[..., dict[str, Any]], bases: Bases) -> None:
    small = {"model": {"base": str(bases("sd3"))}, "data": {"resolution": 16}, "method": {"targets": "all-linear"}}
    plain = gradients.gradients(settings(**small), torch.float32, 0)
    spared = gradients.gradients(settings(**small, run={"gradient_checkpointing": True}), torch.float32, 0)
    assert plain.keys() == spared.keys() and all(g.any() for g in plain.values())
    assert max(float((plain[n] - spared[n]).norm() / plain[n].norm()) for n in plain) < 1e-6


# Names


@pytest.mark.parametrize("more", [{}, {"dual_attention_layers": (), "qk_norm": None}], ids=["3.5 medium", "3 medium"])
def test_the_original_layout_is_the_one_that_diffusers_converts(more: dict[str, Any], tmp_path: Path) -> None:
    """Every tensor of the transformer, there by our names and back by diffusers' own converter."""
    tiny.stable_diffusion_3(tmp_path / "base", **more)
    state = StableDiffusion3Pipeline.from_pretrained(tmp_path / "base").transformer.state_dict()
    written = transformer(state)
    assert all(k.startswith("model.diffusion_model.") for k in written)
    back = to_diffusers(dict(written))
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 4


def test_a_fused_file_acts_as_on_the_original_weights(bases: Bases, tmp_path: Path, settings: Callable[..., dict[str, Any]]) -> None:
    """A LoRA of one rank over queries, keys and values together, as sd-scripts writes it, on every layer of a block: against the change of
    the original's own matrices, taken through diffusers' converter."""
    folder = bases("sd3")
    of, net = family(folder), StableDiffusion3Pipeline.from_pretrained(folder).transformer
    plain, matrices = output(net, of), transformer(net.state_dict())
    file: dict[str, Tensor] = {}
    for i, (key, matrix) in enumerate(sorted(matrices.items())):
        stem = key.removeprefix("model.diffusion_model.").removesuffix(".weight")
        if matrix.ndim == 2 and stem.startswith(("joint_blocks.0", "joint_blocks.2", "final_layer")):
            down, up = random(2, matrix.shape[1], seed=i), random(matrix.shape[0], 2, seed=-i)
            file |= {f"lora_unet_{flat(stem)}.{leaf}": t for leaf, t in
                     (("lora_down.weight", down), ("lora_up.weight", up), ("alpha", torch.tensor(1.0)))}  # fmt: skip
            matrices[key] = matrix + up @ down / 2
    assert len([k for k in file if k.endswith("attn2_qkv.alpha")]) == 1 and len(file) == 3 * (11 + 8 + 2)
    path = tmp_path / "kohya.safetensors"
    save_file(file, path)
    net.load_state_dict(to_diffusers(matrices))
    meant = output(net, of)
    assert (meant - plain).abs().max() > 0.05
    applied = read(path, "stable-diffusion-3")
    assert applied.layout == "kohya" and ("transformer", "transformer_blocks.2.norm1_context.linear") in applied.modules
    assert keys.sort_keys({k: t.shape for k, t in file.items()}).family == "stable-diffusion-3", "by its own names, whatever its width"
    for written in (path, convert(path, "diffusers", tmp_path / "d.safetensors", "stable-diffusion-3")):
        assert (through_ours_as(of, written) - meant).abs().max() < 1e-5
    again = convert(tmp_path / "d.safetensors", "kohya", tmp_path / "k.safetensors", "stable-diffusion-3")
    assert load_file(again).keys() == file.keys() and (through_ours_as(of, again) - meant).abs().max() < 1e-5
    job = settings(model={"base": str(folder)}, data={"resolution": 16}, optim={"steps": 1, "lr": 1e-9}) | {"method": {"start": str(path)}}
    went_on = run.train(config.parse(job))
    assert (through_ours(of, Path(went_on["adapter"])) - meant).abs().max() < 1e-4, "a run goes on from it"


def through_ours_as(of: Family, path: Path) -> Tensor:
    from finetune.sampling import apply

    of = family(of.source.folder)
    pipeline = of.pipeline()
    apply.to_denoiser(of, pipeline, [(read(path, of.spec.name), 1.0)])
    return output(pipeline.transformer, of)


SPELT = {
    "transformer_blocks.23.attn.add_k_proj": "joint_blocks_23_context_block_attn_qkv",
    "transformer_blocks.0.attn2.to_out.0": "joint_blocks_0_x_block_attn2_proj",
    "transformer_blocks.5.ff_context.net.0.proj": "joint_blocks_5_context_block_mlp_fc1",
    "transformer_blocks.5.norm1.linear": "joint_blocks_5_x_block_adaLN_modulation_1",
    "time_text_embed.text_embedder.linear_2": "y_embedder_mlp_2",
}


def test_keys_are_spelt_as_sd_scripts_spells_them() -> None:
    for module, key in SPELT.items():
        assert flat(NAMES.original(module) or "") == key and module in keys.sort_keys(
            {f"lora_unet_{key}.lora_down.weight": (1, 8), f"lora_unet_{key}.lora_up.weight": (24, 1)}, "stable-diffusion-3"
        ).entries[0].modules  # fmt: skip
    assert {names.kohya for names in NAMES.text.values()} == {"lora_te1", "lora_te2", "lora_te3"}


def test_files_of_other_tools_are_recognised(tmp_path: Path) -> None:
    """OneTrainer's and SimpleTuner's flat names of diffusers, PEFT's wrapper, and the original names under ComfyUI's word."""
    stems = (
        "lora_transformer_transformer_blocks_0_attn_to_q", "lycoris_transformer_blocks_0_attn_to_q",
        "base_model.model.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_q",
        "diffusion_model.joint_blocks.0.x_block.attn.qkv", "joint_blocks.0.x_block.attn.qkv",
    )  # fmt: skip
    for stem in stems:
        high = 3 * 1536 if stem.endswith("qkv") else 1536
        save_file({f"{stem}.lora_down.weight": random(1, 1536), f"{stem}.lora_up.weight": random(high, 1)}, tmp_path / "x.safetensors")
        assert inspect(tmp_path / "x.safetensors").family == "stable-diffusion-3", stem
        assert ("transformer", "transformer_blocks.0.attn.to_q") in read(tmp_path / "x.safetensors").modules


# Which of its models


def shipped(name: str) -> source.Source:
    return source.Source(name, single_file.skeleton(single_file.shipped_configs(name)), of_name("stable-diffusion-3"))


def test_its_models_are_told_apart(bases: Bases, without_t5: Path, train: Train) -> None:
    """By shapes where those differ; 3 medium and 3.5 medium have the same in all that 3 medium has, and a file says which it is of."""
    models = {name: shipped(name) for name in ("sd3-medium", "sd35-medium", "sd35-large")}
    editions = [facts.SPEC.edition(of) for of in models.values()]
    assert [(e.version, e.steps, e.guidance) for e in editions] == [("3-medium", 28, 7.0), ("3-5-medium", 40, 4.5), ("3-5-large", 28, 3.5)]
    assert all(e.windows == {"text_encoder_3": 256} and e.resolution == 1024 for e in editions)

    shapes = {name: shapes_of(load.networks(of)) for name, of in models.items()}

    def fits(width: int, *ends: str) -> dict[str, str | None]:
        place = {("transformer", f"transformer_blocks.0.{end}"): lora(torch.ones(1, width), torch.ones(width, 1)) for end in ends}
        return {name: shape_misfit(shapes[name], place) for name in models}

    twice, once, large = fits(1536, "attn.to_q", "attn2.to_q"), fits(1536, "attn.to_q"), fits(2432, "attn.to_q")
    assert [bool(twice[name]) for name in models] == [True, False, True] and "has no layer for" in str(twice["sd3-medium"])
    assert [bool(once[name]) for name in models] == [False, False, True] and "has another width" in str(once["sd35-large"])
    assert [bool(large[name]) for name in models] == [True, True, False]
    adapter = train(model={"base": str(without_t5)}, method={"targets": "to_k"}, data={"resolution": 16}, optim={"steps": 1})["adapter"]
    with pytest.raises(DataError, match="trained for stable-diffusion-3-3-medium, and sd3 is stable-diffusion-3-3-5-medium"):
        request = generate.Request(prompts=("x",), base=str(bases("sd3")), adapters=(adapter,))
        generate.sampler_for(family(bases("sd3")), request, [read(Path(adapter))])


def test_a_distilled_one_is_named(bases: Bases, tmp_path: Path) -> None:
    shutil.copytree(bases("sd3"), tmp_path / "sd3.5-large-turbo")
    assert "distilled for few steps (turbo); training undoes that, `--base sd35-large`" in family(tmp_path / "sd3.5-large-turbo").notes()[0]
    assert not family(bases("sd3")).notes()


# As one file


def original(width: int, *more: str) -> dict[str, Tensor]:
    at = "model.diffusion_model.joint_blocks.0.x_block"
    block = {f"{at}.attn.qkv.weight": torch.zeros(3, width)}
    return block | {(f"{at}.attn2.qkv.weight" if k == "attn2" else f"text_encoders.{k}.x"): torch.zeros(1) for k in more}


CLIPS = ("clip_l", "clip_g")


@pytest.mark.parametrize(
    ("state", "name", "t5"),
    [
        (original(1536, *CLIPS), "sd3-medium", False),  # sd3_medium_incl_clips
        (original(1536, *CLIPS, "t5xxl"), "sd3-medium", True),
        (original(1536, "attn2", *CLIPS, "t5xxl"), "sd35-medium", True),
        (original(2432, *CLIPS), "sd35-large", False),
    ],
    ids=["3 medium with CLIP", "3 medium", "3.5 medium", "3.5 large with CLIP"],
)
def test_the_keys_of_a_file_tell_its_model(state: dict[str, Tensor], name: str, t5: bool, tmp_path: Path) -> None:
    save_file(state, tmp_path / "x.safetensors")
    of = source.resolve_base(str(tmp_path / "x.safetensors"), weights=False)
    assert single_file.identify(tmp_path / "x.safetensors", None).name == name
    assert ("text_encoder_3" in of.spec.text) == t5 and of.spec.edition(of) == facts.SPEC.edition(shipped(name))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (original(1536, "attn2"), r"holds no text encoder \(text_encoders\.clip_l"),  # sd3.5_medium as it is published
        (original(1536, "clip_l", "t5xxl"), r"holds no text encoder \(text_encoders\.clip_g"),
        (original(1152, *CLIPS), "of an unknown kind, whose blocks are 1152 wide"),
    ],
)
def test_files_that_are_no_base_are_refused(state: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(AccessError, match=said):
        source.resolve_base(str(tmp_path / "x.safetensors"))


@pytest.fixture
def tiny_configs(bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny base's configs and width in the place of 3.5 medium's."""
    root, base = tmp_path / "configs", bases("sd3")
    root.mkdir()
    files = [base / "model_index.json", *base.glob("*/config.json"), *base.glob("*/scheduler_config.json")]
    files += base.glob("*/tokenizer_config.json")
    (root / "sd35-medium.json").write_text(json.dumps({f.relative_to(base).as_posix(): json.loads(f.read_text()) for f in files}))
    for name, folder in (("clip", "tokenizer"), ("t5", "tokenizer_3")):
        shutil.copytree(base / folder, root / name, ignore=shutil.ignore_patterns("tokenizer_config.json"))
    monkeypatch.setattr(single_file, "CONFIGS", root)
    monkeypatch.setattr(facts, "MEDIUM", 16)


@pytest.mark.usefixtures("tiny_configs")
def test_a_whole_model_is_the_same_as_a_folder_and_as_one_file(bases: Bases, train: Train, tmp_path: Path) -> None:
    """Trained with its text encoders, written both ways, and opened; T5 is part of it, and may be left out of the file."""
    full: dict[str, Any] = {"model": {"base": str(bases("sd3"))}, "method": {"kind": "full", "text_encoder": True}, "optim": {"steps": 1}}
    full["data"] = {"resolution": 16}
    folder = family(Path(train(**full)["model"]))
    file = tmp_path / "single.safetensors"  # as --format single writes it
    model.write_single(folder.source, file, {part: folder.parts.load(part) for part in folder.spec.parts}, "fp32", {})
    opened = load.family(source.resolve_base(str(file)))
    assert opened.spec.text == folder.spec.text and opened.schedule() == folder.schedule()
    for part in folder.spec.parts:
        one, other = folder.parts.load(part).state_dict(), opened.parts.load(part).state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), part
    base = family(bases("sd3")).parts
    assert not torch.equal(*(parts.load("text_encoder_2").get_parameter("text_projection.weight") for parts in (base, opened.parts)))
    parts = {part: folder.parts.load(part).state_dict() for part in folder.spec.parts}
    some = {k: t for k, t in as_one_file(folder.source, parts).items() if "t5xxl" not in k}
    save_file(some, tmp_path / "clips.safetensors")
    lacking = load.family(source.resolve_base(str(tmp_path / "clips.safetensors")))
    assert lacking.spec.text == ("text_encoder", "text_encoder_2")
    assert torch.equal(lacking.texts([PROMPT])[0]["hidden"][: tiny.WINDOW], folder.texts([PROMPT])[0]["hidden"][: tiny.WINDOW])
    assert not lacking.texts([PROMPT])[0]["hidden"][tiny.WINDOW :].any()


@pytest.mark.usefixtures("tiny_configs")
def test_text_encoders_may_lie_beside_a_file(bases: Bases, tmp_path: Path) -> None:
    """As they are published: the transformer and the autoencoder in one file, the text encoders in a folder beside it."""
    base = family(bases("sd3"))
    parts = {part: base.parts.load(part).state_dict() for part in base.spec.parts}
    whole = as_one_file(base.source, parts)
    save_file({k: t for k, t in whole.items() if not k.startswith("text_encoders.")}, tmp_path / "sd3.5_medium.safetensors")
    with pytest.raises(AccessError, match="holds no text encoder") as refused:
        source.resolve_base(str(tmp_path / "sd3.5_medium.safetensors"))
    assert "put clip_l.safetensors beside it" in refused.value.hint
    (tmp_path / "text_encoders").mkdir()
    for word, name in (("clip_l", "clip_l"), ("clip_g", "clip_g"), ("t5xxl", "t5xxl_fp16")):
        start = f"text_encoders.{word}.transformer."
        state = {k.removeprefix(start): t for k, t in whole.items() if k.startswith(start)}
        if word == "clip_l":  # which has none in the original
            del state["text_projection.weight"]
        save_file(state, tmp_path / "text_encoders" / f"{name}.safetensors")
    opened = load.family(source.resolve_base(str(tmp_path / "sd3.5_medium.safetensors")))
    for part in base.spec.parts:
        one, other = parts[part], opened.parts.load(part).state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), part
    damaged = tmp_path / "text_encoders" / "clip_g.safetensors"
    save_file({k: t for k, t in load_file(damaged).items() if "layers.1.mlp" not in k}, damaged)
    with pytest.raises(AccessError, match=r"clip_g\.safetensors: lacks text_model\.encoder\.layers\.1\.mlp\..* and 3 more"):
        source.resolve_base(str(tmp_path / "sd3.5_medium.safetensors"))
