"""What lies in a base's folder reaches libraries and published models only where it belongs to the base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from parts import Bases, Train
from safetensors.torch import load_file, save_file

from finetune.errors import AccessError, ConfigError
from finetune.families import contents, load, source


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A base that a test may change."""
    return shutil.copytree(base, tmp_path / "base")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_only_known_files_are_published(copy: Path, train: Train, tmp_path: Path) -> None:
    clean = train(model={"base": str(copy)}, method={"kind": "full"}, optim={"steps": 1, "lr": 1e-5}, run={"name": "clean"})
    wanted = names(Path(clean["model"]))
    for place in ("tokenizer/notes.txt", "vae/model.bin", "unet/extra.py", "text_encoder/adapter_config.json", "scheduler/.hidden"):
        (copy / place).write_text("SECRET")
    (copy / "vae" / "sub").mkdir()
    (copy / "vae" / "sub" / "config.json").write_text("SECRET")
    (tmp_path / "key").write_text("SECRET")
    (copy / "tokenizer" / "more.txt").symlink_to(tmp_path / "key")
    change(copy / "model_index.json", evil=["evil_module", "Class"], custom_pipeline="owner/code", _name_or_path="/home/me/base")
    change(copy / "vae" / "config.json", _name_or_path="/home/me/base", auto_map={"AutoModel": "owner/code--m.C"})
    made = train(model={"base": str(copy)}, method={"kind": "full"}, optim={"steps": 1, "lr": 1e-5}, run={"out": str(tmp_path / "b")})
    model = Path(made["model"])
    assert names(model) == wanted
    for file in model.rglob("*"):
        held = file.read_bytes() if file.is_file() else b""
        assert not any(word in held for word in (b"SECRET", b"/home/me", b"auto_map", b"evil")), file
    import diffusers

    diffusers.StableDiffusionPipeline.from_pretrained(model)


def test_a_link_that_leaves_the_base_is_refused(copy: Path, train: Train, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text("{}")
    (copy / "tokenizer" / "added_tokens.json").symlink_to(tmp_path / "key.json")
    with pytest.raises(AccessError, match=r"tokenizer/added_tokens.json is a link that leaves the base"):
        train(model={"base": str(copy)}, method={"kind": "full"}, optim={"steps": 1, "lr": 1e-5})
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_links_within_the_hubs_cache_are_followed(base: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--o--n"
    snapshot = shutil.copytree(base, repository / "snapshots" / "abc")
    (repository / "blobs").mkdir()
    (snapshot / "vae" / "config.json").rename(repository / "blobs" / "1")
    (snapshot / "vae" / "config.json").symlink_to("../../../blobs/1")
    contents.copy(snapshot / "vae", tmp_path / "vae", None, "x")
    assert (tmp_path / "vae" / "config.json").read_bytes() == (base / "vae" / "config.json").read_bytes()
    assert not (tmp_path / "vae" / "config.json").is_symlink()


# A base's file, what is put into it, and what of that libraries must not see.
CODE = [
    ("text_encoder/config.json", {"_attn_implementation": "owner/kernel"}, "_attn_implementation"),
    ("text_encoder/config.json", {"auto_map": {"AutoModel": "owner/code--m.C"}}, "auto_map"),
    ("unet/config.json", {"kernel_config": "owner/kernel"}, "kernel_config"),
    ("unet/config.json", {"made_up": 3}, "made_up"),
    ("text_encoder/config.json", {"made_up": {"a": 1}}, "made_up"),
    ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["owner/code--t.T", None]}}, "auto_map"),
    ("tokenizer/tokenizer_config.json", {"made_up": 1}, "made_up"),
]


@pytest.mark.parametrize(("place", "said", "key"), CODE)
def test_what_chooses_code_is_left_out_and_said(
    place: str, said: dict[str, Any], key: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents._say.cache_clear()
    change(copy / place, **said)
    family = load.family(source.resolve_base(str(copy)))
    part = place.partition("/")[0]
    if part != "tokenizer":
        net = family.parts.load(part)
        assert getattr(net.config, key, None) != next(iter(said.values()))
    assert f"note: base: {place} says {key}, which is left out" in capsys.readouterr().err


def test_what_t5_makes_of_its_settings_is_not_worth_a_word(bases: Bases, capsys: pytest.CaptureFixture[str]) -> None:
    """It stands in every config that the library writes."""
    contents._say.cache_clear()
    load.family(source.resolve_base(str(bases("sd3")))).parts.load("text_encoder_3")
    assert "left out" not in capsys.readouterr().err


REFUSED = [
    ("unet/config.json", '"owner/code"', "holds no JSON object"),
    ("scheduler/scheduler_config.json", '"owner/code"', "holds no JSON object"),
    ("vae/config.json", "[]", "holds no JSON object"),
    ("vae/config.json", "[" * 100_000, "nested too deeply|recursion"),
    ("model_index.json", '"owner/code"', "no readable model_index.json"),
    ("model_index.json", '{"_class_name": ["a"]}', "names no class"),
    ("unet/config.json", {"class_embed_type": "timestep"}, 'unet has class_embed_type "timestep"'),
    ("unet/config.json", {"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type"),
    ("unet/config.json", {"in_channels": 8}, "unet.in_channels is 8, and vae.latent_channels 4 do not add up to it"),
    ("unet/config.json", {"cross_attention_dim": 48}, "do not add up"),
    ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, 'prediction_type "flow"'),
    ("scheduler/scheduler_config.json", {"beta_start": "x"}, "cannot load scheduler"),
    ("scheduler/scheduler_config.json", {"beta_end": 20.0}, "no noise schedule"),
    ("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantised \(bitsandbytes\)"),
    ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1e.09; 1000 are believed|is believed"),
    ("text_encoder/config.json", {"intermediate_size": 10**9}, "intermediate_size is 1e.09"),
    ("text_encoder/config.json", {"intermediate_size": 10**5}, "is that of a network of"),
    ("unet/config.json", {"block_out_channels": [32] * 100}, "block_out_channels has 100 entries"),
    ("tokenizer/tokenizer_config.json", {"tokenizer_class": "EvilTokenizer"}, "tokenizer_class is EvilTokenizer"),
]


@pytest.mark.parametrize(("place", "said", "why"), REFUSED)
def test_what_is_not_understood_is_refused(place: str, said: str | dict[str, Any], why: str, copy: Path) -> None:
    if isinstance(said, str):
        (copy / place).write_text(said)
    else:
        change(copy / place, **said)
    with pytest.raises(AccessError, match=why) as raised:
        family = load.family(source.resolve_base(str(copy)))
        family.schedule()
        family.parts.load(place.partition("/")[0])
    assert "\n" not in raised.value.message


def test_weights_that_lack_a_tensor_are_refused(copy: Path) -> None:
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_out.bias"]
    save_file(tensors, path)
    with pytest.raises(AccessError, match=r"unet .*lack conv_out.bias|unet .*conv_out.bias"):
        load.family(source.resolve_base(str(copy))).parts.load("unet")


def test_an_index_names_weights_of_its_own_folder(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../vae/x.safetensors"}}))
    with pytest.raises(AccessError, match="names files that are no weights"):
        load.family(source.resolve_base(str(copy))).parts.load("unet")


def test_no_file_gives_a_permission(tmp_path: Path) -> None:
    from finetune.config import resolve

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {allow_pickle: true}\ndata: {path: imgs}\n")
    with pytest.raises(ConfigError, match=r"recipe.yaml: model.allow_pickle is a permission, which no file gives"):
        resolve({}, recipe)
    assert resolve({"model": {"allow_pickle": True}}, recipe).model.allow_pickle
