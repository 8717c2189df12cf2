"""The published sizes: real architectures on the meta device, from the configs that ship with the package."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.adapters import keys
from finetune.adapters.flat import dotted, flat
from finetune.adapters.fused import lora
from finetune.adapters.layouts import LAYOUTS
from finetune.families import load, single_file, source
from finetune.families.family import Family
from finetune.methods import adapter


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    root = tmp_path_factory.mktemp("full")

    @cache
    def make(name: str) -> Family:
        single_file.write_configs(json.loads((single_file.CONFIGS / f"{name}.json").read_text()), root / name)
        return load.family(source.resolve_base(str(root / name), weights=False))

    return make


# As published: https://huggingface.co/docs/diffusers, and counted there by many.
PARAMETERS = {
    ("sd15", "unet"): 859_520_964, ("sd15", "vae"): 83_653_863, ("sd15", "text_encoder"): 123_060_480,
    ("sd21", "unet"): 865_910_724, ("sd21", "text_encoder"): 340_387_840, ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "text_encoder_2"): 694_659_840, ("flux-dev", "transformer"): 11_901_408_320, ("flux-schnell", "transformer"): 11_891_178_560,
    ("sd15-inpainting", "unet"): 859_535_364, ("sdxl-inpainting", "unet"): 2_567_478_084,
    ("flux-dev", "vae"): 83_819_683, ("flux-dev", "text_encoder_2"): 4_762_310_656, ("sd3-medium", "transformer"): 2_028_328_000,
    ("sd35-medium", "transformer"): 2_243_171_520, ("sd35-large", "transformer"): 8_056_627_520,
}  # fmt: skip


LATER = ("sd35-medium", "attention")  # which all-linear holds


def by_default(table: dict[tuple[str, str], int]) -> list[Any]:
    """Of three models that differ in width and depth alone, one; the others with the slow tests."""
    return [
        pytest.param(*case, marks=[pytest.mark.slow] if case[0] in ("sd3-medium", "sd35-large") or case == LATER else []) for case in table
    ]


@pytest.mark.parametrize(("name", "part"), by_default(PARAMETERS))
def test_parameters(name: str, part: str, full: Callable[[str], Family]) -> None:
    assert sum(p.numel() for p in full(name).parts.skeleton(part).parameters()) == PARAMETERS[name, part]


MODULES = {
    ("sd15", "attention"): 128, ("sd15", "attention+ff"): 160, ("sd15", "all-linear"): 192, ("sd21", "attention"): 128,
    ("sdxl", "attention"): 560, ("sdxl", "attention+ff"): 700, ("sdxl", "all-linear"): 722,
    ("flux-dev", "attention"): 266, ("flux-dev", "attention+ff"): 418, ("flux-dev", "all-linear"): 494,
    # Eight projections of attention a block, without the last one's answer to the text; four more where a block attends twice.
    ("sd3-medium", "attention"): 191, ("sd3-medium", "all-linear"): 333, ("sd35-medium", "attention"): 243,
    ("sd35-medium", "all-linear"): 385, ("sd35-large", "attention"): 303,
}  # fmt: skip


@pytest.mark.parametrize(("name", "targets"), by_default(MODULES))
def test_adapted_modules_and_their_names_in_every_layout(name: str, targets: str, full: Callable[[str], Family]) -> None:
    of = full(name)
    net = of.parts.skeleton(of.spec.denoiser)
    found = adapter.matching(net, targets, of.spec.targets)
    assert len(found) == MODULES[name, targets]
    weights = {n: net.get_parameter(f"{n}.weight") for n in found}
    modules = {
        (of.spec.denoiser, n): lora(torch.ones(1, *w.shape[1:], dtype=torch.float16), torch.ones(w.shape[0], 1, *[1] * (w.ndim - 2)).half())
        for n, w in weights.items()
    }
    for layout, write in LAYOUTS.items():
        state = write(modules, of.spec.names)
        back = keys.sort_keys({k: t.shape for k, t in state.items()})
        assert not back.unknown and back.family == of.spec.name, layout
        there = {(of.spec.denoiser, m) for e in back.entries for m in e.modules}
        fused = {p for p in there - modules.keys() if p[1].endswith("proj_mlp")}  # zeros, where it shares a layer with the attention
        assert there - fused == modules.keys() and (not fused or (layout, name) == ("kohya", "flux-dev")), layout
        assert all(e.kind == "lora" for e in back.entries)


def test_the_adapter_of_sd15_at_rank_8_has_the_known_size(full: Callable[[str], Family]) -> None:
    of = full("sd15")
    net = of.parts.skeleton("unet")
    found = adapter.matching(net, "attention", of.spec.targets)
    shapes = [net.get_parameter(f"{n}.weight").shape for n in found]
    assert sum(8 * (s[0] + s[1]) for s in shapes) == 1_594_368  # 3.2 MB in fp16


def test_keys_are_spelt_as_in_files_of_the_original_trainers(full: Callable[[str], Family]) -> None:
    """Samples of names that the kohya trainer writes for the full networks (its file conventions, version 0.10)."""
    spelt = {
        "sd15": {
            "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_out.0": "up_blocks_3_attentions_2_transformer_blocks_0_attn1_to_out_0",
            "mid_block.attentions.0.proj_in": "mid_block_attentions_0_proj_in",
        },
        "sdxl": {
            "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k": "input_blocks_4_1_transformer_blocks_1_attn2_to_k",
            "down_blocks.2.attentions.1.proj_out": "input_blocks_8_1_proj_out",
            "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj": "middle_block_1_transformer_blocks_9_ff_net_0_proj",
            "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_q": "output_blocks_2_1_transformer_blocks_0_attn1_to_q",
            "up_blocks.1.attentions.0.proj_in": "output_blocks_3_1_proj_in",
            "down_blocks.0.resnets.0.conv1": "input_blocks_1_0_in_layers_2",
            "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
            "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
        },
        "flux-dev": {
            "transformer_blocks.18.attn.to_k": "double_blocks_18_img_attn_qkv",
            "transformer_blocks.0.ff_context.net.2": "double_blocks_0_txt_mlp_2",
            "single_transformer_blocks.37.proj_mlp": "single_blocks_37_linear1",
            "single_transformer_blocks.0.proj_out": "single_blocks_0_linear2",
        },
    }
    for name, table in spelt.items():
        net = full(name).parts.skeleton(full(name).spec.denoiser)
        for module, key in table.items():
            assert net.get_submodule(module) is not None
            original = full(name).spec.names.lora.original
            assert flat((full(name).spec.names.original(module) or "") if original else module) == key


def test_every_adaptable_module_has_a_name_that_comes_back(full: Callable[[str], Family]) -> None:
    for name in ("sd15", "sd21", "sdxl", "flux-dev", "sd35-medium"):
        net = full(name).parts.skeleton(full(name).spec.denoiser)
        for n, m in net.named_modules():
            if isinstance(m, torch.nn.Linear | torch.nn.Conv2d):
                names = full(name).spec.names
                original = names.original(n)
                assert original and names.holds(n) and n in (names.members(dotted(flat(original))) or ())
                assert dotted(flat(n)) == n


def test_the_plan_of_a_full_size_base_loads_no_weights(full: Callable[[str], Family], imgs: Path) -> None:
    from finetune import config
    from finetune.training.plan import plan

    made = plan(config.parse({"model": {"base": str(full("sdxl").source.folder)}, "data": {"path": str(imgs)}, "method": {"rank": 8}}))
    assert made.facts["adapted_layers"] == 560 and made.facts["frozen_parameters"] == 2_567_463_684
    assert made.facts["resolution"] == 1024
