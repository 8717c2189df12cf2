"""How a file's family is recognised, and what becomes of a file whose family is not."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune.adapters import keys
from finetune.adapters.contract import KEY, Contract
from finetune.adapters.convert import convert
from finetune.adapters.fused import lora
from finetune.adapters.inspect import inspect
from finetune.adapters.read import read
from finetune.adapters.write import export
from finetune.errors import DataError
from finetune.families import catalogue
from finetune.families.catalogue import FAMILIES, of_name
from finetune.families.names import DENOISER, Layer, Spelling
from finetune.families.spec import FamilySpec

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def of_transformer(blocks: int, width: int = 3072) -> dict[str, list[int]]:
    """The shapes of a LoRA on the attention of a transformer with FLUX.1's names, of which Qwen-Image has 60 blocks."""
    out: dict[str, list[int]] = {}
    for i in range(blocks):
        for module in ATTENTION:
            stem = f"transformer.transformer_blocks.{i}.attn.{module}"
            out |= {f"{stem}.lora_A.weight": [4, width], f"{stem}.lora_B.weight": [width, 4]}
    return out


def test_a_transformer_of_another_family_is_not_taken_for_a_known_one() -> None:
    assert keys.sort_keys(of_transformer(60)).family is None, "Qwen-Image has more blocks than FLUX.1"
    assert keys.sort_keys(of_transformer(19, 2432)).family == "stable-diffusion-3", "whose large model is as wide"
    assert keys.sort_keys(of_transformer(60, 2432)).family is None, "it has more blocks than that"
    assert keys.sort_keys(of_transformer(24, 1536)).family == "stable-diffusion-3", "both mediums"
    assert keys.sort_keys(of_transformer(25, 1536)).family is None
    assert keys.sort_keys(of_transformer(19, 1920)).family is None, "a width of no model"
    assert keys.sort_keys(of_transformer(19)).family == "flux"


def test_a_file_that_two_families_claim_is_of_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    flux = of_name("flux")
    names = replace(flux.names, recognises=lambda layers: all(layer.module.startswith("transformer_blocks.") for layer in layers))
    monkeypatch.setattr(catalogue, "FAMILIES", (*FAMILIES, replace(flux, name="invented", names=names)))
    assert keys.sort_keys(of_transformer(19)).family is None
    assert keys.sort_keys(of_transformer(60)).family == "invented"
    single = {f"transformer.single_transformer_blocks.0.proj_out.lora_{half}.weight": [4, 4] for half in "AB"}
    assert keys.sort_keys(of_transformer(19) | single).family == "flux"
    assert keys.sort_keys(of_transformer(19), "flux").family == "flux", "who knows may say so"


@pytest.mark.parametrize("spec", FAMILIES, ids=lambda spec: spec.name)
def test_a_familys_tables_agree(spec: FamilySpec) -> None:
    """That the names of all modules come back, tests/test_full_size.py shows on the real networks."""
    names = spec.names
    assert not names.has("text_encoder_4", "text_model.final_layer_norm")
    assert not names.recognises([]) and not names.recognises([Layer(DENOISER, "pos_embed", False, 3072, "transformer")])
    assert names.embedding_keys.keys() == set(spec.text) and set(names.codes) == {"adapter", "embedding", "model"}
    assert len({text.kohya for text in names.text.values()}) == len(names.text)


def of_family(family: str) -> dict[str, str]:
    contract = Contract("base", None, "0", family, "epsilon", 64, None, 1.0, 4, "ddim", 2, 1.0, 4)
    return {KEY: json.dumps(asdict(contract))}


@pytest.mark.parametrize("prefix", ["lora_quill", "lycoris_quill"])
def test_a_familys_own_word_for_its_denoiser_is_read_back(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flux = of_name("flux")
    names = replace(flux.names, lora=Spelling(prefix, original=False))
    monkeypatch.setattr(catalogue, "FAMILIES", (*FAMILIES, replace(flux, name="quill", names=names)))
    modules = {("transformer", "transformer_blocks.0.attn.to_q"): lora(torch.ones(2, 8), torch.ones(8, 2))}
    export(modules, tmp_path / "x.safetensors", "kohya", "quill", None, {}, "base")
    back = read(tmp_path / "x.safetensors", "quill")
    assert back.layout == "kohya" and back.modules.keys() == modules.keys()


def test_a_file_of_a_family_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    path, stem = tmp_path / "x.safetensors", "lora_unet_mid_block_attentions_0_proj_in"
    state = {f"{stem}.lora_down.weight": torch.ones(2, 8), f"{stem}.lora_up.weight": torch.ones(8, 2), f"{stem}.alpha": torch.tensor(2.0)}
    save_file(state, path, of_family("sana"))
    report = inspect(path)
    assert report.family == "sana" and not report.readers
    assert [p for p in report.problems if "of the family sana, which is not known here; known are stable-diffusion," in p]
    for refused in (lambda: read(path), lambda: convert(path, "diffusers")):
        with pytest.raises(DataError, match="family sana, which is not known here"):
            refused()
    assert read(path, "stable-diffusion").family == "stable-diffusion"


def test_nothing_is_written_for_a_family_that_is_not_known(tmp_path: Path) -> None:
    modules = {("unet", "mid_block.attentions.0.proj_in"): lora(torch.ones(2, 8), torch.ones(8, 2))}
    with pytest.raises(DataError, match="family sana, which is not known here"):
        export(modules, tmp_path / "x.safetensors", "kohya", "sana", None, {}, "base")
    other = {("text_encoder_2", "text_model.final_layer_norm"): next(iter(modules.values()))}
    with pytest.raises(DataError, match=r"no name for text_encoder_2\.text_model\.final_layer_norm"):
        export(other, tmp_path / "x.safetensors", "kohya", "stable-diffusion", None, {}, "base")
    assert not [*tmp_path.iterdir()]


def test_original_names_that_do_not_tell_their_family_are_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FAMILIES", (*FAMILIES, replace(of_name("flux"), name="invented")))
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file({f"{stem}.lora_down.weight": torch.ones(2, 8), f"{stem}.lora_up.weight": torch.ones(24, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="do not tell of which family"):
        read(tmp_path / "x.safetensors")
    assert len(read(tmp_path / "x.safetensors", "flux").modules) == 3
