"""Every layout has the effect of the trained model through its own readers, with alpha different from rank."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import DiffusionPipeline
from parts import Bases, family
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune import config
from finetune.adapters.flat import flat
from finetune.adapters.fused import lora
from finetune.adapters.inspect import block_norms
from finetune.adapters.layouts import LAYOUTS, Modules
from finetune.adapters.read import read
from finetune.adapters.weights import Weights
from finetune.adapters.write import export
from finetune.errors import DataError, FinetuneError
from finetune.families.catalogue import of_name
from finetune.families.family import Family
from finetune.sampling import apply
from finetune.training.run import Run, train

SIDE = 16
pytestmark = pytest.mark.filterwarnings("ignore")  # the readers' own
SD, FLUX = of_name("stable-diffusion").names, of_name("flux").names


@torch.no_grad()
def output(net: nn.Module, of: Family) -> Tensor:
    """What the denoiser answers to fixed inputs."""
    g = torch.Generator().manual_seed(1)

    def fill(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: fill(v) for k, v in x.items()}
        return torch.rand(x.shape, generator=g) if isinstance(x, Tensor) and x.ndim > 1 else x

    made = fill(of.example(SIDE, "cpu"))
    made["timestep"] = made["timestep"] + (500 if made["timestep"].dtype == torch.int64 else 0.5)
    answer: Tensor = net(**made, return_dict=False)[0]
    return answer


def fresh(folder: Path) -> Any:
    return DiffusionPipeline.from_pretrained(folder)


def live_outputs(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the denoiser of each run from now on answers when it is done."""
    live: list[Tensor] = []
    finish = Run.finish

    def keep(self: Run) -> Any:
        training = self.training
        live.append(output(training.step.nets["denoiser"].eval(), self.prepared.work.family))
        return finish(self)

    monkeypatch.setattr(Run, "finish", keep)
    return live


@pytest.fixture
def trained(settings: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, bases: Bases) -> Callable[..., tuple[Path, Tensor]]:
    """Trains, writes one layout, and returns the file with the *live* training model's output."""
    live = live_outputs(monkeypatch)

    def make(layout: str, name: str = "sd", **run: Any) -> tuple[Path, Tensor]:
        made = settings(
            model={"base": str(bases(name))}, method={"rank": 4, "alpha": 10, "targets": "all-linear"}, data={"resolution": SIDE},
            optim={"lr": 3e-2, "steps": 8}, run={"format": layout} | run,
        )  # fmt: skip
        summary = train(config.parse(made))
        return Path(summary["adapter"]), live[-1]

    return make


def through_diffusers(of: Family, path: Path) -> Tensor:
    pipe = fresh(of.source.folder)
    pipe.load_lora_weights(path.parent, weight_name=path.name)
    net = getattr(pipe, of.spec.denoiser)
    assert sum(".lora_A." in n for n, _ in net.named_parameters()) == len(read(path).modules)
    return output(net, of)


def through_peft(of: Family, path: Path) -> Tensor:
    from peft import PeftModel

    model = PeftModel.from_pretrained(getattr(fresh(of.source.folder), of.spec.denoiser), path)
    assert sum(".lora_A." in n for n, _ in model.named_parameters()) == len(read(path).modules)
    return output(model, of)


def through_lycoris(of: Family, path: Path) -> Tensor:
    import lycoris
    from lycoris.wrapper import LycorisNetwork

    LycorisNetwork.LORA_PREFIX = "lora_unet"  # with its own prefix it loads nothing, and says nothing
    model = fresh(of.source.folder).unet
    network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), model)
    assert len(network.loras) == len(read(path).modules)
    network.merge_to(1.0)
    return output(model, of)


def through_ours(of: Family, path: Path) -> Tensor:
    of = family(of.source.folder)
    pipeline = of.pipeline()
    apply.to_denoiser(of, pipeline, [(read(path), 1.0)])
    return output(getattr(pipeline, of.spec.denoiser), of)


READERS = {"kohya": (through_diffusers, through_ours), "diffusers": (through_diffusers, through_ours), "peft": (through_peft, through_ours)}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, marks=[pytest.mark.slow] if name == "sd3" and layout != "diffusers" else [])
        for name in tiny.PIPELINES
        for layout in READERS
    ],
)
def test_a_file_has_the_trained_effect_elsewhere(name: str, layout: str, trained: Any, bases: Bases) -> None:
    path, live = trained(layout, name)
    of = family(bases(name))
    base = output(getattr(fresh(bases(name)), of.spec.denoiser), of)
    assert (live - base).abs().max() > 0.05, "the adapter must do something for this test to mean anything"
    readers = (*READERS[layout], *((through_lycoris,) if layout == "kohya" and name == "sd" else ()))
    if layout == "kohya" and name in ("flux", "flux-schnell", "sd3"):
        readers = (through_ours,)  # diffusers' reader knows FLUX.1's real widths alone, see the next test, and nothing of the other's
    for reader in readers:
        assert (reader(of, path) - live).abs().max() < 1e-5, reader.__name__


def test_kohya_files_of_flux_mean_the_same_to_diffusers() -> None:
    """At the real widths, for which its converter is written: every projection's change, ours against what it reads."""
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    g = torch.Generator().manual_seed(0)
    double, single = "transformer_blocks.0.", "single_transformer_blocks.0."
    rows = {
        f"{double}attn.to_q": 3072, f"{double}attn.to_k": 3072, f"{double}attn.to_v": 3072, f"{double}attn.add_q_proj": 3072,
        f"{double}attn.add_k_proj": 3072, f"{double}attn.add_v_proj": 3072, f"{double}attn.to_out.0": 3072,
        f"{double}attn.to_add_out": 3072, f"{double}ff.net.0.proj": 12288, f"{double}norm1.linear": 18432,
        f"{single}attn.to_q": 3072, f"{single}attn.to_k": 3072, f"{single}attn.to_v": 3072, f"{single}proj_mlp": 12288,
        f"{single}norm.linear": 9216,
    }  # fmt: skip
    modules = {("transformer", m): lora(torch.randn(2, 3072, generator=g), torch.randn(n, 2, generator=g)) for m, n in rows.items()}
    theirs = _convert_kohya_flux_lora_to_diffusers(LAYOUTS["kohya"](modules, FLUX))
    assert theirs.keys() == {f"transformer.{m}.lora_{half}.weight" for m in rows for half in "AB"}
    for (_, m), w in modules.items():
        down, up = w.pair()
        change = theirs[f"transformer.{m}.lora_B.weight"] @ theirs[f"transformer.{m}.lora_A.weight"]
        assert torch.allclose(change, up @ down, atol=1e-4), m


def test_the_strength_stands_in_one_place(trained: Any) -> None:
    kohya, _ = trained("kohya")
    state = load_file(kohya)
    assert {float(v) for k, v in state.items() if k.endswith(".alpha")} == {4.0}  # the rank: 10 / 4 is folded in
    with safe_open(kohya, "pt") as f:
        assert "lora_adapter_metadata" not in f.metadata()
    contract = read(kohya).contract
    assert contract and contract.training_alpha == 10 and contract.rank == 4


def test_the_header_names_no_path_and_no_date(trained: Any, tmp_path: Path, bases: Bases) -> None:
    path, _ = trained("kohya")
    facts = read(path).metadata
    assert str(tmp_path) not in str(facts) and str(bases("sd").parent) not in str(facts) and "date" not in str(facts)
    assert facts["modelspec.architecture"] == "stable-diffusion-v1/lora"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert facts["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data[8 + size :]).hexdigest()


# Names that other tools look for


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("sd", ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.",)),
        ("sdxl", ("lora_unet_input_blocks_4_1_", "lora_unet_middle_block_1_", "lora_unet_output_blocks_0_1_")),
        (
            "flux",
            ("lora_unet_double_blocks_0_img_attn_qkv.", "lora_unet_single_blocks_1_linear1.", "lora_unet_double_blocks_1_txt_mod_lin."),
        ),
    ],
)
def test_kohya_keys_are_the_ones_that_the_interfaces_read(name: str, prefixes: tuple[str, ...], trained: Any) -> None:
    state = load_file(trained("kohya", name)[0])
    assert all(k.startswith("lora_unet_") for k in state)
    for prefix in prefixes:
        assert any(k.startswith(prefix) for k in state), prefix
    for key in (k for k in state if k.endswith(".lora_up.weight")):
        stem = key.removesuffix(".lora_up.weight")
        assert float(state[f"{stem}.alpha"]) == state[key].shape[1] == state[f"{stem}.lora_down.weight"].shape[0]


def random_modules(of: Family, parts: tuple[str, ...], seed: int = 0) -> dict[tuple[str, str], Any]:
    """Random low-rank changes of every attention projection of these parts, of two different ranks."""
    g, out = torch.Generator().manual_seed(seed), {}
    ends = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj", "add_q_proj", "proj_mlp")
    for part in parts:
        for n, m in of.parts.skeleton(part).named_modules():
            if isinstance(m, nn.Linear) and n.endswith(ends):
                r = 2 if n.endswith("to_k") else 3
                full = n if part in ("unet", "transformer") or n.startswith("text_model.") else f"text_model.{n}"
                down, up = (torch.randn(s, generator=g) / 4 for s in ((r, m.in_features), (m.out_features, r)))
                out[part, full] = lora(down, up)
    return out


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, layout) for name in ("sd", "sdxl", "flux") for layout in ("kohya", "diffusers")] + [("sd3", "diffusers")],  # which it reads
)
def test_text_encoder_parts_load_in_diffusers_with_our_effect(name: str, layout: str, bases: Bases, tmp_path: Path) -> None:
    of = family(bases(name))
    encoders = of.spec.taught_text  # these pipelines take none for T5
    both = () if (name, layout) == ("flux", "kohya") else (of.spec.denoiser,)  # see above: its reader knows the real widths alone
    modules = random_modules(of, (*both, *encoders))
    path = tmp_path / "x.safetensors"
    export(modules, path, layout, of.spec.name, "fp32", {}, "base")
    apply.to_text_encoders(of, [(read(path, of.spec.name), 1.0)])
    ours = of.texts(["red disc"])[0]
    plain = family(bases(name)).texts(["red disc"])[0]
    pipe = fresh(bases(name))
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    alone = {"do_classifier_free_guidance": False, "num_images_per_prompt": 1, "device": "cpu"}
    more: dict[str, dict[str, Any]] = {
        "flux": {"prompt_2": None},
        "sd3": alone | {"prompt_2": None, "prompt_3": None, "max_sequence_length": tiny.WINDOW},
    }
    theirs = pipe.encode_prompt("red disc", **more.get(name, alone))
    key, index = {"flux": ("pooled", 1), "sd3": ("pooled", 2)}.get(name, ("hidden", 0))
    assert (ours[key] - plain[key]).abs().max() > 0.1
    assert (ours[key] - theirs[index][0]).abs().max() < 1e-4
    assert (through_ours(of, path) - output(getattr(pipe, of.spec.denoiser), of)).abs().max() < 1e-5


def test_fused_projections_come_back_with_their_own_ranks(bases: Bases) -> None:
    of = family(bases("flux"))
    modules = random_modules(of, ("transformer",))
    del modules["transformer", "transformer_blocks.0.attn.to_v"], modules["transformer", "single_transformer_blocks.1.proj_mlp"]
    state = LAYOUTS["kohya"](modules, FLUX)
    assert state["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"].shape == (48, 5)
    assert state["lora_unet_single_blocks_1_linear1.lora_up.weight"].shape == (16 * 7, 8)
    back = back_from(state)
    assert back.keys() == modules.keys()
    for place, w in modules.items():
        assert torch.equal(back[place].tensors["down"], w.tensors["down"]) and torch.equal(back[place].pair()[1], w.tensors["up"])


def back_from(state: dict[str, Tensor], tmp: list[int] = []) -> Modules:  # noqa: B006
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save_file(state, f"{folder}/x.safetensors")
        return read(Path(folder) / "x.safetensors").modules


# Files of other tools


def rename(state: dict[str, Tensor], change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(k): v for k, v in state.items()}


def xlabs(of: Family) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    out: dict[str, Tensor] = {}
    for side in "12":
        for what, size in (("qkv", 48), ("proj", 16)):
            stem = f"double_blocks.0.processor.{what}_lora{side}"
            out |= {f"{stem}.down.weight": torch.randn(2, 16, generator=g) / 2, f"{stem}.up.weight": torch.randn(size, 2, generator=g) / 2}
    return out


WILD: dict[str, tuple[str, Callable[[Family], dict[str, Tensor]]]] = {
    "old diffusers": ("sd", lambda of: rename(
        LAYOUTS["diffusers"](random_modules(of, ("unet",)), SD),
        lambda k: k.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_").replace(".lora_A", "_lora.down")
        .replace(".lora_B", "_lora.up"),
    )),
    "diffusers 0.2x": ("sd", lambda of: rename(
        LAYOUTS["diffusers"](random_modules(of, ("unet",)), SD),
        lambda k: k.replace(".lora_A", ".lora.down").replace(".lora_B", ".lora.up"),
    )),
    "no alpha": ("sd", lambda of: {
        k: v for k, v in LAYOUTS["kohya"](random_modules(of, ("unet",)), SD).items() if not k.endswith(".alpha")
    }),
    "half-precision alpha": ("sd", lambda of: {
        k: torch.tensor(1.5, dtype=torch.float16) if k.endswith(".alpha") else v
        for k, v in LAYOUTS["kohya"](random_modules(of, ("unet",)), SD).items()
    }),
    "XL with diffusers' block names": ("sdxl", lambda of: {
        f"lora_unet_{flat(m)}.{half}.weight": t
        for (_, m), w in random_modules(of, ("unet",)).items() for half, t in zip(("lora_down", "lora_up"), w.pair(), strict=True)
    }),
    "ai-toolkit": ("flux", lambda of: LAYOUTS["diffusers"](random_modules(of, ("transformer",)), FLUX)),
    "XLabs": ("flux", xlabs),
    "BFL": ("flux", lambda of: {
        f"diffusion_model.{stem}.{half}.weight": t
        for stem, rows in (("double_blocks.0.img_attn.qkv", 48), ("single_blocks.0.linear1", 112), ("double_blocks.1.txt_mlp.0", 64))
        for half, t in (("lora_A", torch.randn(2, 16) / 2), ("lora_B", torch.randn(rows, 2) / 2))
    }),
}  # fmt: skip


@pytest.mark.parametrize("wild", list(WILD))
def test_files_found_in_the_wild_act_as_in_diffusers(wild: str, bases: Bases, tmp_path: Path) -> None:
    name, make = WILD[wild]
    of = family(bases(name))
    path = tmp_path / "lora.safetensors"
    save_file(make(of), path)
    pipe = fresh(bases(name))
    plain = output(getattr(pipe, of.spec.denoiser), of)
    if wild == "BFL":  # whose loader asks for every part of the real model
        state = load_file(path)
        expected = merged(of, {k.removeprefix("diffusion_model."): v for k, v in state.items()})
    else:
        pipe.load_lora_weights(tmp_path, weight_name=path.name)
        expected = output(getattr(pipe, of.spec.denoiser), of)
    assert (expected - plain).abs().max() > 0.01
    assert (through_ours(of, path) - expected).abs().max() < 1e-5


@torch.no_grad()
def merged(of: Family, state: dict[str, Tensor]) -> Tensor:
    """Rows of each fused change added by hand to diffusers' layers."""
    net = fresh(of.source.folder).transformer
    for stem in {k.split(".lora_")[0] for k in state}:
        change, members = state[f"{stem}.lora_B.weight"] @ state[f"{stem}.lora_A.weight"], FLUX.members(stem)
        assert members
        start = 0
        for m in members:
            weight = net.get_submodule(m).weight
            weight += change[start : start + len(weight)]
            start += len(weight)
        assert start == len(change)
    return output(net, of)


@pytest.mark.parametrize("target", ["Transformer2DModel", "ResnetBlock2D"])
@pytest.mark.parametrize("algo", ["loha", "lokr", "diag-oft", "bounded oft", "full", "dora"])
def test_lycoris_files_act_as_in_lycoris(algo: str, target: str, bases: Bases, tmp_path: Path) -> None:
    import lycoris
    from lycoris.wrapper import LycorisNetwork

    of, g = family(bases("sd")), torch.Generator().manual_seed(0)
    LycorisNetwork.LORA_PREFIX = "lora_unet"
    LycorisNetwork.apply_preset({"target_module": [target]})
    model = fresh(bases("sd")).unet
    kinds = {"dora": {"algo": "lora", "dora_wd": True}, "bounded oft": {"algo": "diag-oft", "constraint": 0.05}}
    kind = kinds.get(algo, {"algo": algo})
    network = lycoris.create_lycoris(model, 1.0, linear_dim=2, linear_alpha=1, conv_dim=2, conv_alpha=1, factor=4, **kind)
    network.apply_to()
    for n, p in network.named_parameters():
        p.data = p.data * 1.3 if "dora" in n else 0.3 * torch.randn(p.shape, generator=g)
    path = tmp_path / "x.safetensors"
    network.save_weights(str(path), torch.float32, {})
    expected = output(model, of)  # as in its training: its own merging applies the strength of LoHa and LoKr twice (4.1.3)
    network.restore()
    plain = output(model, of)
    assert (expected - plain).abs().max() > 0.01
    assert (through_ours(of, path) - expected).abs().max() < 1e-4
    assert {w.kind for w in read(path).modules.values()} == {{"diag-oft": "oft", "bounded oft": "oft"}.get(algo, algo)}
    assert apply.misfit(of, read(path).on("unet")) is None and (block_norms(path) or "oft" in algo)


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_dora_of_peft_acts_as_in_peft(layout: str, bases: Bases, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    of, g = family(bases("sd")), torch.Generator().manual_seed(0)
    pipe = fresh(bases("sd"))
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=6, use_dora=True, target_modules=["to_q", "to_v"]))
    for n, p in pipe.unet.named_parameters():
        if "lora" in n:
            p.data = p.data * 1.3 if "magnitude" in n else 0.3 * torch.randn(p.shape, generator=g)
    expected = output(pipe.unet, of)
    state = get_peft_model_state_dict(pipe.unet)
    if layout == "diffusers":
        path = tmp_path / "lora.safetensors"
        meta = {"unet.r": 2, "unet.lora_alpha": 6, "unet.use_dora": True}
        save_file({f"unet.{k}": v.contiguous() for k, v in state.items()}, path, {"lora_adapter_metadata": json.dumps(meta)})
    else:
        path = tmp_path / "folder"
        path.mkdir()
        save_file({f"base_model.model.{k}": v.contiguous() for k, v in state.items()}, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "use_dora": True}))
    assert {w.kind for w in read(path).modules.values()} == {"dora"}
    assert (through_ours(of, path) - expected).abs().max() < 1e-5


def test_a_peft_folder_of_another_tool_has_its_own_strength(trained: Any, bases: Bases) -> None:
    path, _ = trained("peft")
    written = json.loads((path / "adapter_config.json").read_text())
    of = family(bases("sd"))
    odd = written["target_modules"][0]
    patterns = {"to_q": 32, "attn2.to_k": 16, odd: 1}  # PEFT matches the ends of names
    for more in ({"lora_alpha": 16}, {"lora_alpha": 16, "use_rslora": True}, {"alpha_pattern": {odd: 1}}, {"alpha_pattern": patterns}):
        (path / "adapter_config.json").write_text(json.dumps(written | more))
        assert (through_ours(family(bases("sd")), path) - through_peft(of, path)).abs().max() < 1e-5, more
    (path / "adapter_config.json").write_text(json.dumps(written | {"peft_type": "LOHA"}))
    with pytest.raises(DataError, match="of the type LOHA is not understood"):
        read(path)
    for broken in ({"alpha_pattern": [1]}, {"lora_alpha": "much"}):
        (path / "adapter_config.json").write_text(json.dumps(written | broken))
        with pytest.raises(DataError, match="no readable r and lora_alpha"):
            read(path)


def test_lora_and_dora_in_one_file(bases: Bases, tmp_path: Path) -> None:
    of = family(bases("sd"))
    modules = random_modules(of, ("unet",))
    odd = next(p for p in modules if p[1].endswith("to_q"))
    rows = {"rows": torch.rand(modules[odd].tensors["up"].shape[0]) + 0.5}
    modules[odd] = Weights("dora", modules[odd].tensors | rows, modules[odd].alpha)
    path = tmp_path / "x.safetensors"
    export(modules, path, "kohya", "stable-diffusion", "fp32", {}, "base")
    net = fresh(bases("sd")).unet
    for (_, m), w in modules.items():
        apply.merge(net.get_submodule(m), w, 1.0)
    assert (through_ours(of, path) - output(net, of)).abs().max() < 1e-5


# Refusals


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    modules = {("unet", "mid_block.x"): lora(torch.ones(2, 3), torch.tensor([[1e6, 1.0]]))}
    with pytest.raises(FinetuneError, match="not finite as fp16"):
        export(modules, tmp_path / "x.safetensors", "kohya", "stable-diffusion", "fp16", {}, "base")
    assert not list(tmp_path.iterdir())


def header(value: Any, data: bytes = b"") -> bytes:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(raw).to_bytes(8, "little") + raw + data


ONE = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
AFTER, EMPTY = {"data_offsets": [4, 8]}, {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}
STEM = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable safetensors"),
        (b"\x10" + b"\0" * 7 + b"{}", "not a readable safetensors"),
        (b"PK\x03\x04" + b"\0" * 60, "pickle under another name"),
        (b"\x80\x02}q\x00." + b"\0" * 60, "pickle under another name"),
        ((2**62).to_bytes(8, "little") + b"{}", "header would be"),
        (header(b"[" * 100_000), "not a readable safetensors"),
        (header({"a": ONE | {"data_offsets": [0, 400]}}, b"\0" * 4), "promises 400 bytes, 4 are there"),
        (header({"a": ONE | {"shape": [10**9, 10**9]}}, b"\0" * 4), "not a readable safetensors"),
        (header({"model.weight": ONE}, b"\0" * 4), "not an adapter in a known layout"),
        (header({f"{STEM}.lora_down.weight": ONE}, b"\0" * 4), "no matching half, only down"),
        (header({f"{STEM}.lora_down.weight": ONE, "huh": ONE | {"data_offsets": [4, 8]}}, b"\0" * 8), "belong to no known layer: huh"),
        (header({f"{STEM}.lokr_w1": ONE}, b"\0" * 4), "no matching half"),
        (header({f"{STEM}.lora_down.weight": ONE | {"shape": [1]}, f"{STEM}.lora_up.weight": ONE | AFTER}, b"\0" * 8), "has the shape [1]"),
        (
            header({f"{STEM}.lora_down.weight": ONE, f"{STEM}.lora_up.weight": ONE | AFTER, f"{STEM}.alpha": EMPTY}, b"\0" * 8),
            "has the shape [0]",
        ),
        (
            header({f"{STEM}.lora_down.weight": ONE, "unet.mid_block.attentions.0.proj_in.lora_A.weight": ONE | AFTER}, b"\0" * 8),
            "stands for a layer that another key stands for too",
        ),
        (
            header({f"{STEM}.lora_down.weight": ONE | {"dtype": "I8", "data_offsets": [0, 1]},
                    f"{STEM}.lora_up.weight": ONE | {"data_offsets": [1, 5]}}, b"\0" * 5),
            "numbers of the kind",
        ),
        (header({"a": ONE | {"shape": [float("inf")]}}, b"\0" * 4), "not a readable safetensors"),
        (header({"a": ONE | {"data_offsets": [0]}}, b"\0" * 4), "not a readable safetensors"),
        (header({"a": ONE, "b": ONE}, b"\0" * 4), "its header gives b a wrong place"),
        (
            header({f"{STEM}.lora_down.weight": ONE, f"{STEM}.lora_up.weight": ONE | {"data_offsets": [4, 8]}}, b"\0\0\xc0\x7f" * 2),
            "not finite",
        ),
    ],
)  # fmt: skip
def test_damaged_and_hostile_files_are_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(path)
    assert "x.safetensors" in error.value.message
    assert message in error.value.message + error.value.hint
