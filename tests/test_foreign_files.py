"""Files of other tools are read whole: every tensor is applied, converted, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import Bases, family
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune import cli
from finetune.adapters import leaves
from finetune.adapters.convert import convert
from finetune.adapters.fused import lora
from finetune.adapters.inspect import inspect
from finetune.adapters.layouts import LAYOUTS
from finetune.adapters.read import read
from finetune.adapters.weights import Weights
from finetune.bases import TINY
from finetune.errors import DataError
from finetune.families import load, single_file, source
from finetune.families.catalogue import of_name
from finetune.families.family import Family
from finetune.sampling import apply

State = dict[str, Tensor]
Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"  # a square linear layer with a bias
STEM = "lora_unet_" + Q.replace(".", "_")
pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' reader


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) / 4


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Of every tensor that an adapter of a square linear layer may have, by our names."""
    half = width // 2
    return {
        "down": (2, width), "up": (width, 2), "mid": (2, 2, 1, 1), "alpha": (), "dora": (width, 1), "rows": (width,),
        "diff": (width, width), "diff_b": (width,), "up_bias": (width,),
        "w1_a": (width, 2), "w1_b": (2, width), "w2_a": (width, 2), "w2_b": (2, width),
        "t1": (2, 2, 1, 1), "t2": (2, 2, 1, 1), "k1": (2, 2), "k1_a": (2, 1), "k1_b": (1, 2), "k2": (half, half), "k2_a": (half, 3),
        "k2_b": (3, half), "k2_t": (3, 3, 1, 1), "blocks": (half, 2, 2), "rescale": (width, 1),
    }  # fmt: skip


def ending(leaf: str) -> str:
    """Kohya's or LyCORIS's; PEFT's where that is the only one."""
    own = {"rows": ".lora_magnitude_vector", "up_bias": ".lora_B.bias", "down": ".lora_down.weight", "up": ".lora_up.weight"}
    return own.get(leaf) or next(key for key, name in leaves.LEAVES.items() if name == leaf)


def tensor(leaf: str, shape: tuple[int, ...]) -> Tensor:
    if leaf == "alpha":
        return torch.tensor(1.5)
    if leaf in ("w1_a", "w2_a", "k2_a") and "t" in leaf:
        return random(*shape)
    return random(*shape).abs() + 0.5 if leaf in ("dora", "rows", "rescale") else random(*shape)


WAYS = [(kind, way) for kind, ways in leaves._WAYS.items() for way in ways]


def whole(kind: str, way: frozenset[str], width: int, norms: str = "dora") -> State:
    """A module of a kind with everything that may stand beside it."""
    beside = leaves._BESIDE[kind] - ({"rows", "dora"} - {norms})
    own = shapes(width)
    tucker = {"w1_a": (2, width), "w2_a": (2, width)} if "t1" in way else {"k2_a": (3, width // 2)} if "k2_t" in way else {}
    return {STEM + ending(leaf): tensor(leaf, tucker.get(leaf, own[leaf])) for leaf in way | beside}


def effect(path: Path, of: Family, net: Any) -> Tensor:
    """The layer's weight and bias once the file is applied."""
    layer = net.get_submodule(Q)
    before = {k: t.clone() for k, t in layer.state_dict().items()}
    for (_, _), w in read(path, of.spec.name).on("unet").items():
        apply.merge(layer, w, 1.0)
    after = torch.cat([t.flatten() for t in layer.state_dict().values()])
    layer.load_state_dict(before)
    return after


@pytest.mark.parametrize(("kind", "way"), WAYS, ids=[f"{kind}-{'-'.join(sorted(way))}" for kind, way in WAYS])
def test_every_tensor_counts(kind: str, way: frozenset[str], bases: Bases, tmp_path: Path) -> None:
    """Another number in any tensor of a file changes what is applied, and what every conversion writes, or is refused by name."""
    of = family(bases("sd"))
    net: Any = of.parts.load("unet")
    width = net.get_submodule(Q).weight.shape[0]
    state = whole(kind, way, width)
    path = tmp_path / "x.safetensors"

    def outcome(state: State) -> list[Any]:
        save_file(state, path)
        found: list[Any] = [effect(path, of, net)]
        for to in ("kohya", "diffusers", "peft", "full"):
            out = tmp_path / to / "y.safetensors"
            try:
                made = convert(path, to, out, of.spec.name, base=lambda part, module: net.get_submodule(module).weight)
                inside = load_file(made / "adapter_model.safetensors" if made.is_dir() else made)
                found.append({k: t.clone() for k, t in inside.items()})
                found.append(effect(made, of, net))
            except DataError as e:
                found.append(e.message)
            for left in sorted(out.parent.rglob("*"), reverse=True) if out.parent.exists() else ():
                left.rmdir() if left.is_dir() else left.unlink()
        return found

    plain = outcome(state)
    assert torch.equal(plain[0], torch.cat([t.flatten() for t in net.get_submodule(Q).state_dict().values()])) is False
    for written in (plain[2], plain[-1]):  # kohya's and whole differences hold all of it
        assert torch.allclose(written, plain[0], atol=1e-5)
    assert {type(x) for x in plain[3:5]} == {str} or "diff_b" not in state
    for key in state:
        if key.endswith(".alpha") and kind in ("full",):
            continue  # whole differences have no rank to divide by: no tool looks at it
        other = dict(state)
        other[key] = other[key] * 1.5 + 0.01
        if key.endswith(".alpha") and kind == "oft":
            other[key] = torch.tensor(1e-4)  # the bound of the rotation
        if key.endswith(".alpha") and kind == "lokr" and {"k1", "k2"} <= way:
            continue  # LyCORIS divides whole matrices by no rank either
        changed = outcome(other)
        assert not torch.equal(changed[0], plain[0]), key
        assert not torch.allclose(changed[2], plain[2], atol=1e-6), key
        assert not torch.allclose(changed[-1], plain[-1], atol=1e-6), key


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"diff": (8, 8)}, "holds diff beside down, up"),
        ({"hada_t1": (2, 2, 1, 1)}, "holds t1 beside down, up"),
        ({"lora_magnitude_vector": (8,), "dora_scale": (8, 1)}, "holds dora, rows beside down, up"),
        ({"oft_blocks": (4, 2, 2)}, "holds blocks beside down, up"),
        ({"lokr_w1": (2, 2)}, "holds k1 beside down, up"),
    ],
    ids=str,
)
def test_what_is_not_understood_beside_another_kind_is_named(more: dict[str, tuple[int, ...]], said: str, tmp_path: Path) -> None:
    state = {f"{STEM}.lora_down.weight": random(2, 8), f"{STEM}.lora_up.weight": random(8, 2)}
    state |= {f"{STEM}.{key}": random(*shape) for key, shape in more.items()}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match=said):
        read(tmp_path / "x.safetensors")


def test_norms_and_lone_biases_are_applied(bases: Bases, tmp_path: Path) -> None:
    of = family(bases("sd"))
    net: Any = of.parts.load("unet")
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_"
    width = net.get_submodule(Q).weight.shape[0]
    state = {f"{stem}norm1.w_norm": random(width), f"{stem}norm1.b_norm": random(width), f"{STEM}.diff_b": random(width, seed=1)}
    path = tmp_path / "x.safetensors"
    save_file(state, path)
    back = load_file(convert(path, "kohya", tmp_path / "y.safetensors", "stable-diffusion"))
    assert back.keys() == state.keys() and all(torch.equal(t, back[k]) for k, t in state.items())
    norm, out = (net.get_submodule(m) for m in ("mid_block.attentions.0.transformer_blocks.0.norm1", Q))
    before = [t.clone() for t in (norm.weight, norm.bias, out.weight, out.bias)]
    for (_, module), w in read(path, "stable-diffusion").modules.items():
        apply.merge(net.get_submodule(module), w, 0.5)
    moved = [a - b for a, b in zip((norm.weight, norm.bias, out.weight, out.bias), before, strict=True)]
    expected = (state[f"{stem}norm1.w_norm"] / 2, state[f"{stem}norm1.b_norm"] / 2, 0 * before[2], state[f"{STEM}.diff_b"] / 2)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(moved, expected, strict=True))
    save_file({f"lora_unet_{Q.replace('.', '_').replace('to_out_0', 'to_q')}.diff_b": random(width)}, path)
    assert "has another bias at unet" in str(apply.misfit(of, read(path, "stable-diffusion").modules))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_an_alpha_is_a_number_whatever_its_kind(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    pair = {f"{STEM}.lora_down.weight": random(2, 8), f"{STEM}.lora_up.weight": random(8, 2)}
    save_file(pair | {f"{STEM}.alpha": torch.full(shape, 4, dtype=dtype)}, path)
    assert next(iter(read(path).modules.values())).strength == 2.0
    for odd, said in ((torch.ones(2), "has the shape"), (torch.ones(1, dtype=torch.bool), "numbers of the kind BOOL")):
        save_file(pair | {f"{STEM}.alpha": odd}, path)
        with pytest.raises(DataError, match=said):
            read(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_eight_bit_floats_are_read_and_written_as_sixteen(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    pair = {f"{STEM}.lora_down.weight": random(2, 8).to(dtype), f"{STEM}.lora_up.weight": random(8, 2).to(dtype)}
    save_file(pair | {f"{STEM}.alpha": torch.tensor(2.0)}, path)
    w = next(iter(read(path).modules.values()))
    assert torch.equal(w.tensors["down"].float(), pair[f"{STEM}.lora_down.weight"].float())
    back = load_file(convert(path, "diffusers", family="stable-diffusion"))
    assert {t.dtype for t in back.values()} == {torch.float16}


def test_a_convolution_of_one_pixel_fits_a_linear_layer_and_the_reverse(bases: Bases, tmp_path: Path) -> None:
    """Stable Diffusion 1's proj_in and proj_out are convolutions, 2's and XL's are linear; tools write either for both."""
    for name, conv in (("sd", True), ("sdxl", False)):
        of = family(bases(name))
        module = "mid_block.attentions.0.proj_in"
        weight = of.parts.skeleton("unet").get_submodule(module).weight
        assert isinstance(weight, torch.Tensor)
        assert (weight.ndim == 4) is conv
        flat = lora(random(2, weight.shape[1]), random(weight.shape[0], 2))
        other = flat if conv else lora(flat.tensors["down"][..., None, None], flat.tensors["up"][..., None, None])
        path = tmp_path / f"{name}.safetensors"
        save_file(LAYOUTS["kohya"]({("unet", module): other}, of.spec.names), path)
        found = read(path, of.spec.name)
        assert apply.misfit(of, found.modules) is None
        pipeline: Any = family(bases(name)).pipeline()
        before = pipeline.unet.get_submodule(module).weight.clone()
        assert apply.to_denoiser(of, pipeline, [(found, 1.0)]) == 1
        pipeline.fuse_lora()
        made = pipeline.unet.get_submodule(module).weight - before
        assert torch.allclose(made.flatten(1), flat.tensors["up"] @ flat.tensors["down"], atol=1e-5)


# Names


def pair(stem: str, out: int = 320, width: int = 320) -> State:
    return {f"{stem}.lora_down.weight": random(1, width), f"{stem}.lora_up.weight": random(out, 1)}


ORIGINAL = {
    "input_blocks.1.1.proj_in": "down_blocks.0.attentions.0.proj_in",
    "input_blocks.10.0.emb_layers.1": "down_blocks.3.resnets.0.time_emb_proj",
    "input_blocks.11.0.out_layers.3": "down_blocks.3.resnets.1.conv2",
    "input_blocks.9.0.op": "down_blocks.2.downsamplers.0.conv",
    "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
    "output_blocks.8.2.conv": "up_blocks.2.upsamplers.0.conv",
    "output_blocks.9.1.proj_in": "up_blocks.3.attentions.0.proj_in",
    "output_blocks.11.1.transformer_blocks.0.attn1.to_q": "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_q",
    "middle_block.2.in_layers.2": "mid_block.resnets.1.conv1",
    "time_embed.2": "time_embedding.linear_2",
    "out.2": "conv_out",
}


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", "lora_unet_", "base_model.model.", "unet.", ""])
def test_the_original_names_of_stable_diffusion_are_known_at_every_level(prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    skeleton = single_file_net("sd15")
    named = {k: m for k, m in ORIGINAL.items() if prefix or k.startswith(("input", "output", "middle"))}
    for original, module in named.items():
        stem = prefix + (original.replace(".", "_") if prefix == "lora_unet_" else original)
        weight = skeleton.get_submodule(module).weight
        state = {f"{stem}.lora_down.weight": random(1, *weight.shape[1:]), f"{stem}.lora_up.weight": random(len(weight), 1)}
        save_file(state | pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", width=768), path)
        assert ("unet", module) in read(path).modules, stem


def single_file_net(name: str) -> Any:
    configs = single_file.shipped_configs(name)
    spec = source.resolve_base(str(TINY)).spec
    return load.family(source.Source(name, single_file.skeleton(configs), spec)).parts.skeleton("unet")


NESTED = (
    "base_model.model.{}", "transformer.{}", "unet.{}", "diffusion_model.{}", "transformer.base_model.model.{}",
    "base_model.model.transformer.{}", "unet.base_model.model.{}", "base_model.model.unet.{}", "model.diffusion_model.{}", "{}",
)  # fmt: skip


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("halves", [("lora_A.weight", "lora_B.weight"), ("lora_A.default.weight", "lora_B.default.weight"),
                                    ("lora_A.style_1.weight", "lora_B.style_1.weight"), ("lora_down.weight", "lora_up.weight")],
                         ids=lambda h: h[0])  # fmt: skip
def test_prefixes_that_tools_put_round_each_other(nested: str, halves: tuple[str, str], tmp_path: Path) -> None:
    """FLUX.1's original names under each, as one file; the converted one has every projection and lands whole."""
    path = tmp_path / "x.safetensors"
    rows = {"double_blocks.0.img_attn.qkv": 9216, "double_blocks.0.txt_mlp.0": 12288, "single_blocks.0.linear1": 21504}
    state = {
        f"{nested.format(m)}.{half}": random(*((1, 3072) if half == halves[0] else (n, 1))) for m, n in rows.items() for half in halves
    }
    state = {k: t.half() for k, t in state.items()}
    save_file(state, path)
    assert inspect(path).family == "flux" and not inspect(path).problems
    back = load_file(convert(path, "diffusers", tmp_path / "y.safetensors"))
    assert len(back) == 2 * (3 + 1 + 4) and all(k.startswith("transformer.") and "_blocks.0." in k for k in back)
    made = back["transformer.single_transformer_blocks.0.proj_mlp.lora_B.weight"]
    whole = state[f"{nested.format('single_blocks.0.linear1')}.{halves[1]}"]
    assert torch.equal(made, whole[9216:])


def test_the_last_norm_of_flux_has_its_halves_in_the_other_order(tmp_path: Path) -> None:
    """As diffusers' own converter turns it."""
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    up, down = random(6144, 2), random(2, 3072)
    stem = "lora_unet_final_layer_adaLN_modulation_1"
    state = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
    save_file(state, tmp_path / "x.safetensors")
    w = read(tmp_path / "x.safetensors").modules["transformer", "norm_out.linear"]
    assert torch.equal(w.tensors["up"], torch.cat([up[3072:], up[:3072]]))
    theirs = _convert_kohya_flux_lora_to_diffusers({k: t.clone() for k, t in state.items()})
    assert torch.allclose(theirs["norm_out.linear.lora_B.weight"], w.tensors["up"])
    assert LAYOUTS["kohya"]({("transformer", "norm_out.linear"): w}, of_name("flux").names)[f"{stem}.lora_up.weight"].equal(up)
    lokr = Weights("lokr", {"k1": random(3, 2), "k2": random(2048, 1536)}, 1.0)  # whose rows cannot be turned in its factors
    stem = "diffusion_model.final_layer.adaLN_modulation.1"
    save_file({f"{stem}.lokr_w1": lokr.tensors["k1"], f"{stem}.lokr_w2": lokr.tensors["k2"]}, tmp_path / "x.safetensors")
    turned = read(tmp_path / "x.safetensors").modules["transformer", "norm_out.linear"].tensors["diff"]
    assert torch.equal(turned, lokr.raw().roll(3072, 0))


def test_text_encoders_as_comfyui_names_them(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stem = "text_encoders.{}.transformer.text_model.encoder.layers.0.mlp.fc1"
    for name, part in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        save_file(pair(stem.format(name), 3072, 768), path)
        assert list(read(path, "stable-diffusion-xl").modules) == [(part, "text_model.encoder.layers.0.mlp.fc1")]


KINDS: dict[str, Callable[[int], dict[str, tuple[int, ...]]]] = {
    "lora": lambda w: {"lora_down.weight": (2, w), "lora_up.weight": (640, 2)},
    "tucker": lambda w: {"lora_down.weight": (2, w, 1, 1), "lora_mid.weight": (2, 2, 1, 1), "lora_up.weight": (640, 2, 1, 1)},
    "loha": lambda w: {"hada_w1_a": (640, 2), "hada_w1_b": (2, w), "hada_w2_a": (640, 2), "hada_w2_b": (2, w)},
    "tucker loha": lambda w: {"hada_w1_a": (2, 640), "hada_w1_b": (2, w), "hada_w2_a": (2, 640), "hada_w2_b": (2, w),
                              "hada_t1": (2, 2, 1, 1), "hada_t2": (2, 2, 1, 1)},
    "lokr": lambda w: {"lokr_w1": (8, 8), "lokr_w2_a": (80, 2), "lokr_w2_b": (2, w // 8)},
    "whole lokr": lambda w: {"lokr_w1": (8, 8), "lokr_w2": (80, w // 8)},
    "full": lambda w: {"diff": (640, w)},
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("width", "family"), [(768, "stable-diffusion"), (1024, "stable-diffusion"), (2048, "stable-diffusion-xl")])
def test_the_family_comes_from_the_widths_of_any_kind(kind: str, width: int, family: str, tmp_path: Path) -> None:
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{stem}.{key}": torch.ones(*shape) for key, shape in KINDS[kind](width).items()}, tmp_path / "x.safetensors")
    report = inspect(tmp_path / "x.safetensors")
    assert (report.family, report.kinds) == (family, {kind.split()[-1].replace("tucker", "lora"): 1})


def test_a_file_that_fits_no_model_of_its_family_is_not_converted(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    text = pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", width=768)
    for stem, out, width, said in (
        ("lora_unet_down_blocks_0_attentions_0_proj_in", 640, 640, "has another width at unet.down_blocks.0.attentions.0.proj_in"),
        ("lora_unet_down_blocks_3_attentions_0_proj_in", 1280, 1280, "has no layer for unet.down_blocks.3.attentions.0.proj_in"),
        ("lora_unet_down_blocks_7_attentions_0_proj_in", 1280, 1280, "belong to no known layer of stable-diffusion"),
        ("lora_unet_down_blocks_0_attentions_0_proj_sideways", 320, 320, "belong to no known layer of stable-diffusion"),
    ):
        save_file(text | pair(stem, out, width), path)
        for to in ("kohya", "diffusers"):
            with pytest.raises(DataError, match=said):
                convert(path, to)
    save_file(text | pair("lora_unet_down_blocks_0_attentions_0_proj_in"), path)  # linear, where the layer is a convolution
    back = load_file(convert(path, "diffusers"))
    assert back["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"].shape == (1, 320, 1, 1)
    qwen = {f"transformer.transformer_blocks.{n}.attn.to_q.lora_{half}.weight": random(*s) for n in (0, 40)
            for half, s in (("A", (1, 3072)), ("B", (3072, 1)))}  # fmt: skip
    save_file(qwen, path)
    assert inspect(path).family is None, "it has more blocks than FLUX.1"
    with pytest.raises(DataError, match="belong to no known layer of flux"):
        convert(path, "kohya", family="flux")


# Embeddings that came along


@pytest.fixture
def pivotal(tmp_path: Path) -> Path:
    """A LoRA of the embedded base's, with two tokens."""
    net: Any = load.family(source.resolve_base("tiny")).parts.skeleton("unet")
    width = net.get_submodule(Q).weight.shape[0]
    state = LAYOUTS["kohya"]({("unet", Q): lora(random(2, width), random(width, 2))}, of_name("stable-diffusion").names)
    state |= {"bundle_emb.zed.emb_params": random(2, 128), "bundle_emb.yak.string_to_param.*": random(1, 128)}
    save_file({k: t.contiguous() for k, t in state.items()}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_embeddings_beside_an_adapter_are_words_and_survive_conversion(pivotal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = inspect(pivotal)
    assert report.embeddings == {"zed": 2, "yak": 1} and not [p for p in report.problems if "bundle" in p]
    back = load_file(convert(pivotal, "kohya", pivotal.with_name("kohya.safetensors"), "stable-diffusion"))
    assert torch.equal(back["bundle_emb.zed.emb_params"], load_file(pivotal)["bundle_emb.zed.emb_params"])
    said: list[str] = []
    convert(pivotal, "diffusers", pivotal.with_name("d.safetensors"), "stable-diffusion", say=said.append)
    assert load_file(pivotal.with_name("d-zed.safetensors"))["emb_params"].shape == (2, 128) and len(said) == 2
    assert cli.run(["adapter", "verify", str(pivotal), "--base", "tiny"]) == 0
    assert "tokens   2 came along" in capsys.readouterr().out


def test_generate_knows_the_words_that_came_along(pivotal: Path, tmp_path: Path) -> None:
    from finetune.sampling.generate import Request, generate

    request = Request(["zed"], [str(pivotal)], base="tiny", steps=2, out=tmp_path / "a")
    assert generate(request, lambda _: None)[0]["embeddings"] == ["yak", "zed"]
    wide = load_file(pivotal) | {"bundle_emb.zed.emb_params": random(2, 64)}
    save_file(wide, pivotal)
    with pytest.raises(DataError, match="rows of 64 numbers"):
        generate(request, lambda _: None)


# Reports


def test_strict_inspection_and_its_one_line_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    forged = "a\nproblem  none at all\n\x1b[31m" + "x" * 900
    state = pair(STEM) | {f"{STEM}.alpha": torch.tensor(1.0)}
    save_file(state, path, {"modelspec.trigger_phrase": forged, "ss_sd_model_name": forged})
    assert cli.run(["adapter", "inspect", str(path), "--strict"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [text for text in lines if text.startswith("problem") or len(text) > 420 or "\x1b" in text]
    save_file(state | {f"huh.{i}": torch.ones(1) for i in range(3)}, path)
    assert cli.run(["adapter", "inspect", str(path)]) == 0
    assert cli.run(["adapter", "inspect", str(path), "--strict"]) == 3
    assert capsys.readouterr().out.count("belongs to no known layer") == 6, "each key is listed"
    assert cli.run(["adapter", "inspect", str(path), "--strict", "--json"]) == 3
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 3


def test_verify_says_by_how_much_diffusers_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a file whose modules' alphas differ it takes one for all; of DoRA in kohya's layout it leaves the norms out."""
    net: Any = load.family(source.resolve_base("tiny")).parts.skeleton("unet")
    ends = ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.attentions.0.transformer_blocks.0.attn1.to_v")
    width = net.get_submodule(ends[0]).weight.shape[0]
    path = tmp_path / "x.safetensors"
    state: dict[str, torch.Tensor] = {}
    for module, rank, alpha in zip(ends, (1, 2), (1.0, 8.0), strict=True):
        stem = f"lora_unet_{module.replace('.', '_')}"
        state |= {f"{stem}.lora_down.weight": random(rank, width), f"{stem}.lora_up.weight": random(width, rank)}
        state[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(state, path)
    assert cli.run(["adapter", "verify", str(path), "--base", "tiny"]) == 3
    out = capsys.readouterr().out
    assert "diffusers differs by" in out and "alphas differ" in out and "the same" not in out
    mended = convert(path, "kohya", tmp_path / "y.safetensors", "stable-diffusion")
    assert cli.run(["adapter", "verify", str(mended), "--base", "tiny"]) == 0
    assert "diffusers the same within" in capsys.readouterr().out
    state |= {f"lora_unet_{m.replace('.', '_')}.dora_scale": random(width, 1).abs() + 0.5 for m in ends}
    save_file(state, path)
    assert cli.run(["adapter", "verify", str(path), "--base", "tiny", "--json"]) == 3
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["differs"] and verdict["diffusers"] > verdict["tolerance"] and "norms" in verdict["note"]


@pytest.mark.parametrize("kind", ["dora", "oft", "loha"])
def test_any_file_as_whole_differences_or_as_a_lora(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line, on the base that is given: the same change, and the share that the LoRA misses is what it says."""
    net: Any = load.family(source.resolve_base("tiny")).parts.load("unet")
    weight = net.get_submodule(Q).weight
    way = {"dora": {"down", "up", "dora"}, "oft": {"blocks"}, "loha": {"w1_a", "w1_b", "w2_a", "w2_b"}}[kind]
    state = {STEM + ending(leaf): tensor(leaf, shapes(len(weight))[leaf]) for leaf in way}
    path = tmp_path / "x.safetensors"
    save_file(state, path)
    words = ["adapter", "convert", str(path), "--family", "stable-diffusion"]
    if kind != "loha":
        capsys.readouterr()
        assert cli.run([*words, "--to", "full"]) == 2 and "--base" in capsys.readouterr().err
    assert cli.run([*words, "--to", "svd", "--base", "tiny"]) == 2
    assert "needs a rank" in capsys.readouterr().err
    assert cli.run([*words, "--to", "full", "--base", "tiny"]) == 0
    assert cli.run([*words, "--to", "svd", "--rank", "4", "--base", "tiny"]) == 0
    said = capsys.readouterr().err
    change = next(iter(read(path, "stable-diffusion").modules.values())).change(weight)
    whole, low = (next(iter(read(path.with_name(f"x-{to}.safetensors"), "stable-diffusion").modules.values())) for to in ("full", "svd"))
    assert torch.allclose(whole.change(weight), change, atol=1e-6) and (low.kind, low.rank) == ("lora", 4)
    missed = float((low.change(weight) - change).norm() / change.norm())
    best = float(torch.linalg.svdvals(change)[4:].norm() / change.norm())
    assert f"misses {missed:.2%} of the change" in said and missed == pytest.approx(best, rel=0.02, abs=1e-5)
