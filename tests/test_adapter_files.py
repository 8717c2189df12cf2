"""`ft adapter inspect|convert|verify`: conversions lose nothing, reports say what is there, and verifying means something."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import Bases
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune import cli, files
from finetune.adapters.contract import KEY
from finetune.adapters.convert import convert
from finetune.adapters.inspect import inspect
from finetune.adapters.layouts import LAYOUTS
from finetune.adapters.read import read
from finetune.adapters.weights import Weights
from finetune.adapters.write import export
from finetune.errors import ConfigError, DataError, ResourceError
from finetune.families import load, source
from finetune.families.catalogue import of_name
from finetune.families.names import stable_diffusion_xl
from finetune.sampling.verify import verify as prove

FAMILY = {"sd": "stable-diffusion", "sdxl": "stable-diffusion-xl", "flux": "flux", "sd3": "stable-diffusion-3"}
pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' reader


def random_adapter(bases: Bases, name: str, seed: int, text: bool = True) -> dict[tuple[str, str], Weights]:
    """LoRA on a random half of the modules, with random ranks, alphas and one number format."""
    of, rng, g = load.family(source.resolve_base(str(bases(name)))), random.Random(seed), torch.Generator().manual_seed(seed)  # noqa: S311
    dtype = rng.choice([torch.float32, torch.float16, torch.bfloat16])
    out: dict[tuple[str, str], Weights] = {}
    for part in (of.spec.denoiser, *(of.spec.text if text else ())):
        if (name, part) in (("flux", "text_encoder_2"), ("sd3", "text_encoder_3")):
            continue
        for n, m in of.parts.skeleton(part).named_modules():
            linear = isinstance(m, nn.Linear | nn.Conv2d) and n.split(".")[-1] not in ("proj_in", "proj_out", "text_projection")
            if not linear or n.startswith(("conv_", "x_emb", "context_", "norm_out", "pos_")) or rng.random() < 0.5:
                continue
            r, shape = rng.choice([1, 2, 4]), m.weight.shape
            down = torch.randn(r, *shape[1:], generator=g).to(dtype)
            up = (torch.randn(shape[0], r, *[1] * (len(shape) - 2), generator=g) / 4).to(dtype)
            full = n if part == of.spec.denoiser or n.startswith("text_model.") else f"text_model.{n}"
            out[part, full] = Weights("lora", {"down": down, "up": up}, rng.choice([0.5, 1.0, 3.0]))
    return out


def change(w: Weights) -> Tensor:
    down, up = (t.float() for t in (w.tensors["down"], w.tensors["up"]))
    return up.flatten(1) @ down.flatten(1) * w.strength


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", list(FAMILY))
def test_there_and_back_changes_nothing(name: str, seed: int, bases: Bases, tmp_path: Path) -> None:
    first, second = random.Random(seed).sample(["kohya", "diffusers", *(["peft"] if seed % 2 else [])], 2)  # noqa: S311
    modules = random_adapter(bases, name, seed, text="peft" not in (first, second))
    there = tmp_path / "x.safetensors" if first != "peft" else tmp_path / "x"
    export(modules, there, first, FAMILY[name], None, {"modelspec.title": "kept"}, "base")
    forth = convert(there, second, family=FAMILY[name])
    back = convert(forth, first, tmp_path / ("back" if first == "peft" else "back.safetensors"), FAMILY[name])
    for path in (there, forth, back):
        found = read(path, FAMILY[name])
        assert found.metadata["modelspec.title"] == "kept"
        own = found.on("transformer" if name in ("flux", "sd3") else "unet")
        assert own.keys() == modules.keys()
        for place, w in modules.items():
            precision = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[w.tensors["up"].dtype]
            assert own[place].tensors["up"].dtype == w.tensors["up"].dtype
            assert (change(own[place]) - change(w)).norm() <= precision * change(w).norm(), place


def test_what_a_layout_cannot_hold_is_refused(bases: Bases, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    both = random_adapter(bases, "sd", 1)
    export(both, path, "kohya", "stable-diffusion", None, {}, "base")
    with pytest.raises(DataError, match="a PEFT folder holds one network, this adapter changes text_encoder too"):
        convert(path, "peft", family="stable-diffusion")
    loha = {f"lora_unet_mid_block_attentions_0_proj_in.{k}": torch.ones(4, 4) for k in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}
    save_file(loha, path)
    with pytest.raises(DataError, match="the diffusers layout cannot hold loha"):
        convert(path, "diffusers", family="stable-diffusion")
    dora = {"down": torch.ones(1, 8), "up": torch.ones(8, 1), "dora": torch.ones(1, 8)}
    columns = {("unet", "mid_block.attentions.0.proj_in"): Weights("dora", {**dora, "up": torch.ones(6, 1)}, 1.0)}
    save_file(LAYOUTS["kohya"](columns, of_name("stable-diffusion").names), path)
    with pytest.raises(DataError, match="cannot hold DoRA over columns"):
        convert(path, "diffusers", family="stable-diffusion")
    fused = {("transformer", "transformer_blocks.0.attn.to_q"): Weights("dora", {**dora, "up": torch.ones(8, 1)}, 1.0)}
    kept = LAYOUTS["kohya"](fused, of_name("flux").names)  # only plain LoRA survives fusing
    assert {k.partition(".")[0] for k in kept} == {"lycoris_transformer_blocks_0_attn_to_q"}
    with pytest.raises(DataError, match=r"has no name for transformer\.pos_embed"):
        LAYOUTS["kohya"]({("transformer", "pos_embed"): next(iter(both.values()))}, of_name("flux").names)


# Reports


def write(path: Path, state: dict[str, Tensor], **metadata: str) -> Path:
    save_file(state, path, metadata or None)
    return path


STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def pair(width: int = 768, rank: int = 4, stem: str = STEM) -> dict[str, Tensor]:
    return {f"{stem}.lora_down.weight": torch.ones(rank, width), f"{stem}.lora_up.weight": torch.ones(320, rank)}


def test_inspect_reads_what_a_trained_file_says(train: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(train(data={"trigger": "sks"}, method={"rank": 4, "alpha": 2})["adapter"])
    report = inspect(path, norms=True)
    assert (report.layout, report.family, report.trigger, report.problems) == ("kohya", "stable-diffusion", "sks", [])
    assert report.ranks == {4: 32} and report.kinds == {"lora": 32} and report.contract and report.contract["training_alpha"] == 2
    assert report.norms and sum(n**2 for n in report.norms.values()) == pytest.approx(
        sum(float(change(w).square().sum()) for w in read(path).modules.values()), rel=1e-4
    )
    capsys.readouterr()
    assert cli.run(["adapter", "inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"] == {"4": 32}
    assert cli.run(["adapter", "inspect", str(path), "--norms"]) == 0
    assert "trigger  sks" in (text := capsys.readouterr().out) and "█" in text


@pytest.mark.parametrize(
    ("width", "stem", "family"),
    [
        (768, STEM, "stable-diffusion"),
        (1024, STEM, "stable-diffusion"),
        (2048, STEM, "stable-diffusion-xl"),
        (2048, "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", "stable-diffusion-xl"),
        (640, "lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_k", "stable-diffusion-xl"),
        (3072, "lora_unet_double_blocks_3_img_attn_qkv", "flux"),
        (3072, "transformer.single_transformer_blocks.0.attn.to_q", "flux"),
        (40, STEM, None),
        (1536, "transformer.transformer_blocks.0.attn.to_q", "stable-diffusion-3"),
        (1536, "lora_unet_joint_blocks_0_x_block_attn_qkv", "stable-diffusion-3"),
        (2432, "transformer.transformer_blocks.37.attn.to_q", "stable-diffusion-3"),
        (1920, "transformer.transformer_blocks.0.attn.to_q", None),  # another transformer
        (768, "lora_te1_text_model_encoder_layers_0_self_attn_q_proj", None),  # XL, 3 and FLUX.1 all write it so
        (768, "lora_te_text_model_encoder_layers_0_self_attn_q_proj", "stable-diffusion"),
    ],
)
def test_the_family_comes_from_the_keys(width: int, stem: str, family: str | None, tmp_path: Path) -> None:
    assert inspect(write(tmp_path / "x.safetensors", pair(width, stem=stem))).family == family


def test_inspect_lists_problems(tmp_path: Path) -> None:
    def problems(state: dict[str, Tensor], norms: bool = False) -> str:
        return "; ".join(inspect(write(tmp_path / "x.safetensors", state), norms).problems)

    alpha = {f"{STEM}.alpha": torch.tensor(4.0)}
    assert problems(pair() | alpha) == ""
    assert "no alpha" in problems(pair())
    assert "key huh belongs to no known layer of stable-diffusion" in problems(pair() | alpha | {"huh": torch.ones(1)})
    assert "has shapes [4, 768] and [320, 2]" in problems(pair() | alpha | {f"{STEM}.lora_up.weight": torch.ones(320, 2)})
    assert "only down" in problems({f"{STEM}.lora_down.weight": torch.ones(4, 8)})
    assert "mixed layouts: diffusers+kohya" in problems(pair() | alpha | pair(stem="unet.mid_block.attentions.0.proj_in"))
    assert "not finite" in problems(pair() | alpha | {f"{STEM}.lora_up.weight": torch.full((320, 4), torch.nan)}, norms=True)


def test_inspect_sees_a_key_that_stands_twice(tmp_path: Path) -> None:
    one = '{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}'
    raw = f'{{"{STEM}.lora_down.weight":{one},"{STEM}.lora_down.weight":{one}}}'.encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * 4)
    assert any("stands in the header more than once" in p for p in inspect(path).problems)


def test_a_file_without_alpha_says_its_strength(tmp_path: Path) -> None:
    assert "strength 1" in inspect(write(tmp_path / "a.safetensors", pair())).alphas
    meta = json.dumps({"unet.r": 4, "unet.lora_alpha": 8})
    keys = {k.replace(STEM, "unet.mid_block.attentions.0.proj_in"): v for k, v in pair().items()}
    path = write(tmp_path / "b.safetensors", keys, lora_adapter_metadata=meta)
    assert "strength 2 from the config" in inspect(path).alphas
    assert {w.strength for w in read(path).modules.values()} == {2.0}


# Verifying


@pytest.mark.parametrize("name", ["sd", "sd-inpainting", "sdxl", "flux", pytest.param("sd3", marks=pytest.mark.slow)])
def test_verify_measures_the_effect(
    name: str, bases: Bases, train: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = train(model={"base": str(bases(name))}, data={"resolution": 16}, optim={"lr": 1e-2})["adapter"]
    capsys.readouterr()
    assert cli.run(["adapter", "verify", path, "--base", str(bases(name)), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["landed"] == verdict["modules"] > 10 and 1e-4 < verdict["effect"] < 1 and verdict["diffusers"] < 1e-5
    assert verdict["text_effect"] is None


def test_verify_refuses_what_does_not_fit_or_does_nothing(bases: Bases, train: Callable[..., Any], tmp_path: Path, capsys: Any) -> None:
    path = Path(train(model={"base": str(bases("sd"))})["adapter"])
    capsys.readouterr()
    assert cli.run(["adapter", "verify", str(path), "--base", str(bases("flux"))]) == 3
    assert "trained for stable-diffusion, and flux is flux" in capsys.readouterr().err
    dead = {k: torch.zeros_like(v) if "lora_up" in k else v for k, v in load_file(path).items()}
    assert cli.run(["adapter", "verify", str(write(tmp_path / "dead.safetensors", dead)), "--base", str(bases("sd"))]) == 3
    assert "changes nothing" in capsys.readouterr().err


def test_generate_takes_text_encoder_parts(bases: Bases, tmp_path: Path) -> None:
    """What an earlier version refused: the picture changes with the text encoder's part alone."""
    from finetune.sampling.generate import Request, generate

    modules = {p: w for p, w in random_adapter(bases, "sd", 3).items() if p[0] == "text_encoder"}
    path = tmp_path / "te.safetensors"
    export(modules, path, "kohya", "stable-diffusion", "fp32", {}, "base")
    made: list[Path] = []
    for adapters in ((), (str(path),), (f"{path}:0",)):
        ask = Request(["red disc"], adapters, base=str(bases("sd")), steps=2, out=tmp_path / f"out{len(made)}")
        made.append(Path(generate(ask, lambda text: None)[0]["path"]))
    from finetune.sampling import draw

    pictures = [torch.tensor(list(draw.open_png(p).tobytes())) for p in made]
    assert not torch.equal(pictures[0], pictures[1]) and torch.equal(pictures[0], pictures[2])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("inspect nothing.safetensors", 3, "no such adapter file"),
        ("convert x.safetensors --to a1111", 2, "--to a1111: no such layout"),
        ("convert x.safetensors --to kohya --family sd9", 2, "--family sd9: no such family"),
        ("convert x.safetensors", 2, "--to"),
        ("convert x.safetensors --to kohya", 3, "its keys do not tell its family"),
        ("convert x.safetensors --to kohya --family stable-diffusion --out x.safetensors", 2, "is the file itself"),
        ("verify x.safetensors", 2, "does not say its base"),
    ],
)
def test_refusals(words: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.safetensors", pair(40))
    assert cli.run(["adapter", *words.split()]) == code
    assert message in capsys.readouterr().err


def test_the_header_keeps_the_contract(train: Callable[..., dict[str, Any]]) -> None:
    path = Path(train()["adapter"])
    converted = convert(path, "diffusers")
    assert read(converted).metadata[KEY] == read(path).metadata[KEY] and read(converted).contract == read(path).contract


# The model card


def test_the_card_has_the_hubs_front_matter_and_escapes_what_users_wrote(train: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    evil = "disc](x) <script>alert(1)</script> `code`: |"
    train(data={"trigger": "sks"}, run={"sample_prompt": ["red disc", evil], "name": "my_style"})
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    facts = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    assert facts["instance_prompt"] == "sks" and facts["library_name"] == "diffusers" and "lora" in facts["tags"]
    assert [w["text"] for w in facts["widget"]] == ["red disc", evil]
    assert all((tmp_path / "out" / w["output"]["url"]).exists() for w in facts["widget"])
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body and "# my\\_style" in body and "`sks`" in body and str(tmp_path) not in text


def test_cards_of_older_versions_are_known_as_ours_and_nobody_elses_are(tmp_path: Path) -> None:
    from finetune.adapters.card import MARK, card_path

    readme = tmp_path / "README.md"
    assert card_path(tmp_path, "x") == readme and "finetune-diffusion" in MARK
    for ours in (MARK, "trained with [finetune](https://pypi.org/project/finetune)"):
        readme.write_text(f"# x\n\nA LoRA for tiny, {ours} for 3 steps.\n")
        assert card_path(tmp_path, "x") == readme, ours
    readme.write_text("# Mine, trained with [finetune](https://example.org)")
    assert card_path(tmp_path, "x") == tmp_path / "x-card.md"


def test_a_hub_bases_licence_is_said(bases: Bases) -> None:
    from finetune.adapters.card import card, escape
    from finetune.adapters.contract import Contract, Labels, file_metadata

    contract = Contract("owner/name", "abc", "0", "flux", "flow", 1024, None, 3.5, 28, "euler", 8, 8.0, 100)
    text = card(contract, "x", {"adapter": "x.safetensors"}, {"a|b": "<b>"}, "apache-2.0", [])
    assert "base_model: owner/name" in text and "license: apache-2.0" in text and "&lt;b&gt;" in text and "<Gallery />" not in text
    labels = Labels("flux-1-dev", "flux1", {"adapter": "diffusers"})
    assert file_metadata("adapter", contract, "x", labels, "apache-2.0")["modelspec.license"] == "apache-2.0"
    assert escape("a\nb [x](y)") == r"a b \[x\]\(y\)"


# What a review found


def test_nothing_is_replaced(train: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    path = Path(train()["adapter"])
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "precious.txt").write_text("mine")
    assert convert(path, "diffusers", tmp_path / "loras") == tmp_path / "loras" / "lora-diffusers.safetensors"
    assert (tmp_path / "loras" / "precious.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="is there already"):
        convert(path, "diffusers", tmp_path / "loras")
    with pytest.raises(ConfigError, match="is there already"):
        convert(path, "peft", tmp_path / "loras")
    with pytest.raises(ResourceError, match="a folder is in the place"):
        files.write_bytes(tmp_path / "loras", b"x")


def test_somebodys_readme_stays(train: Callable[..., dict[str, Any]], settings: Any, tmp_path: Path) -> None:
    from finetune import config
    from finetune.training.run import train as run

    readme = tmp_path / "out" / "README.md"
    readme.parent.mkdir()
    readme.write_text("mine")
    train()
    assert readme.read_text() == "mine" and "base_model_relation" in (tmp_path / "out" / "lora-card.md").read_text()
    run(config.parse(settings()), fresh=True)
    assert readme.read_text() == "mine"


def test_small_strengths_survive_half_precision(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    w = Weights("lora", {"down": torch.randn(128, 64, generator=g).half(), "up": (torch.randn(64, 128, generator=g) * 2e-4).half()}, 1.0)
    export({("unet", "mid_block.attentions.0.proj_in"): w}, tmp_path / "x.safetensors", "kohya", "stable-diffusion", None, {}, "base")
    (back,) = read(tmp_path / "x.safetensors").modules.values()
    assert (change(back) - change(w)).norm() < 1e-3 * change(w).norm()


def test_dora_on_a_fused_projection_of_another_kind_is_refused(tmp_path: Path) -> None:
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    state = {f"{stem}.{k}": torch.ones(s) for k, s in (("hada_w1_a", (48, 2)), ("hada_w1_b", (2, 16)), ("hada_w2_a", (48, 2)))}
    state |= {f"{stem}.hada_w2_b": torch.ones(2, 16), f"{stem}.dora_scale": torch.ones(48, 1)}
    with pytest.raises(DataError, match="loha with DoRA on a fused projection"):
        read(write(tmp_path / "x.safetensors", state))


def test_a_fused_projection_and_one_of_its_members_are_refused(tmp_path: Path) -> None:
    state = pair(16, stem="lora_unet_single_blocks_0_linear1") | pair(16, stem="transformer.single_transformer_blocks.0.attn.to_q")
    with pytest.raises(DataError, match="stands for a layer that another key stands for too"):
        read(write(tmp_path / "x.safetensors", state))


def test_verify_sees_cross_attention_of_xl(bases: Bases, tmp_path: Path) -> None:
    modules = {p: w for p, w in random_adapter(bases, "sdxl", 2, text=False).items() if p[1].endswith(("attn2.to_k", "attn2.to_v"))}
    export(modules, tmp_path / "x.safetensors", "kohya", "stable-diffusion-xl", "fp32", {}, "base")
    verdict = prove(tmp_path / "x.safetensors", str(bases("sdxl")))
    assert verdict.effect > 1e-4 and verdict.landed == verdict.modules == len(modules)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_verify_compares_text_encoder_files_with_diffusers(name: str, bases: Bases, tmp_path: Path) -> None:
    modules = random_adapter(bases, name, 4)
    export(modules, tmp_path / "x.safetensors", "diffusers", FAMILY[name], "fp32", {}, "base")
    verdict = prove(tmp_path / "x.safetensors", str(bases(name)))
    assert verdict.landed == len(modules) and verdict.text_effect and verdict.diffusers is not None and verdict.diffusers < 1e-5


def test_what_no_layout_can_name_is_refused_before_training(
    bases: Bases, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    flux = {"model": {"base": str(bases("flux"))}, "data": {"resolution": 16}}
    xl = {"model": {"base": str(bases("sdxl"))}, "data": {"resolution": 16}}
    monkeypatch.setattr(stable_diffusion_xl, "_BLOCKS", {})
    with pytest.raises(ConfigError, match=r"--format kohya: has no name for mid_block\.attentions\.0\.proj_in"):
        train(**xl, method={"targets": "mid_block.attentions.0.proj_in"})
    summary = train(**flux, method={"targets": "x_embedder"}, optim={"steps": 1, "lr": 1e-2})
    assert read(Path(summary["adapter"])).modules.keys() == {("transformer", "x_embedder")}


def test_a_full_cache_needs_no_text_encoder(train: Callable[..., Any], bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.families.components import Components

    train(optim={"steps": 1, "lr": 1e-2})
    loaded: list[str] = []
    real = Components.load

    def load(self: Components, name: str, dtype: Any = None) -> Any:
        loaded.append(name)
        return real(self, name, dtype)

    monkeypatch.setattr(Components, "load", load)
    train(optim={"steps": 2, "lr": 1e-2})
    assert loaded == ["unet"]


def test_a_base_is_opened_for_drawing_as_it_was_for_training(train: Callable[..., Any], bases: Bases, tmp_path: Path, capsys: Any) -> None:
    """A base whose weights exist in one variant alone, and which the run was told."""
    import shutil

    folder = tmp_path / "variant"
    shutil.copytree(bases("sd"), folder)
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    path = train(model={"base": str(folder), "variant": "fp16"}, optim={"lr": 1e-2})["adapter"]
    assert cli.run(["generate", "--adapter", path, "--prompt", "x", "--steps", "1", "--out", str(tmp_path / "p")]) == 0
    assert cli.run(["adapter", "verify", path]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("value", ['{"base": 1}', '{"base": "x"}', "[]", "null", "{"])
def test_a_damaged_contract_is_none(value: str, train: Callable[..., Any], tmp_path: Path) -> None:
    path = Path(train()["adapter"])
    whole = json.loads(read(path).metadata[KEY])
    damaged = json.dumps(whole | json.loads(value)) if value == '{"base": 1}' else value
    save_file(load_file(path), tmp_path / "x.safetensors", {KEY: damaged})
    assert read(tmp_path / "x.safetensors").contract is None
