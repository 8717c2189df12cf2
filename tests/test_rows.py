"""Every adapter type on every family: trained, written, and read back by others with the effect that it had."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from parts import Bases, Make, family, in_two_parts
from safetensors import safe_open
from safetensors.torch import save_file
from test_interop import SIDE, fresh, live_outputs, output, through_diffusers, through_ours
from torch import Tensor

from finetune import config
from finetune.adapters.read import read
from finetune.config.adapter_types import ROWS, AdapterType
from finetune.config.precedence import merge_settings
from finetune.errors import ConfigError
from finetune.families.components import Components
from finetune.families.family import Family
from finetune.methods import adapter
from finetune.sampling import apply
from finetune.training import plan
from finetune.training.run import Run, begun, train

pytestmark = pytest.mark.filterwarnings("ignore")  # the readers' own
RATES = {"rslora": 1e-2, "oft": 0.1, "loha": 0.1, "lokr": 0.1}  # at which eight steps are seen


@pytest.fixture
def make(settings: Make, bases: Bases) -> Make:
    """A short run of a type on a family's tiny pipeline, with alpha different from rank."""

    def made(kind: str, name: str = "sd", **more: Any) -> dict[str, Any]:
        alpha = {"alpha": 10.0} if "alpha" in ROWS[kind].takes else {}
        small: dict[str, Any] = {
            "model": {"base": str(bases(name))}, "data": {"resolution": SIDE}, "optim": {"lr": RATES.get(kind, 3e-2), "steps": 8},
            "method": {"kind": kind, "rank": 4, "targets": "all-linear", **alpha}, "run": {"save_dtype": "fp32"},
        }  # fmt: skip
        own = settings(**merge_settings(small, more))
        own["method"] = merge_settings(small["method"], more.get("method", {}))
        return own

    return made


@pytest.fixture
def trained(make: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, Tensor]]:
    """The written file, and what the live network answered when it was done."""
    live = live_outputs(monkeypatch)

    def run(kind: str, name: str = "sd", **more: Any) -> tuple[Path, Tensor]:
        summary = train(config.parse(make(kind, name, **more)))
        return Path(summary["adapter"]), live[-1]

    return run


def through_lycoris(of: Family, path: Path, prefix: str) -> Tensor:
    import lycoris
    from lycoris.wrapper import LycorisNetwork

    LycorisNetwork.LORA_PREFIX = prefix
    model = getattr(fresh(of.source.folder), of.spec.denoiser)
    network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), model)
    assert len(network.loras) == len(read(path, of.spec.name).modules)
    network.merge_to(1.0)
    return output(model, of)


# Of one family's two bases, which differ in the schedule and in guidance, the second is for LoRA alone unless slow tests are run; so is
# rsLoRA, a LoRA at another strength, on the family that takes longest; and Stable Diffusion 3, whose files of each kind are as FLUX.1's.
SECOND = {"sd-v", "flux-schnell"}
LESS = {("rslora", "sdxl"), *((kind, "sd3") for kind in ROWS), *((kind, name) for kind in ROWS for name in SECOND if kind != "lora")}
EVERYWHERE = [
    pytest.param(kind, name, marks=[pytest.mark.slow] if (kind, name) in LESS else []) for name in tiny.PIPELINES for kind in ROWS
]


@pytest.mark.parametrize(("kind", "name"), EVERYWHERE)
def test_a_file_has_the_trained_effect_elsewhere(kind: str, name: str, trained: Any, bases: Bases) -> None:
    path, live = trained(kind, name)
    of = family(bases(name))
    base = output(getattr(fresh(bases(name)), of.spec.denoiser), of)
    assert (live - base).abs().max() > 0.05, "the adapter must do something for this test to mean anything"
    assert (through_ours(of, path) - live).abs().max() < 1e-4
    if name in ("sd", "sd-v") or (of.spec.denoiser == "transformer" and not ROWS[kind].low_rank):
        prefix = "lora_unet" if name in ("sd", "sd-v") else "lycoris"
        assert (through_lycoris(of, path, prefix) - live).abs().max() < 1e-4
    if ROWS[kind].file == "lora":
        assert (through_diffusers(of, path) - live).abs().max() < 1e-4
    with safe_open(path, "pt") as f:
        said = f.metadata()
    assert json.loads(said["ft.contract"])["adapter"] == kind
    assert said["ss_network_module"] == ("networks.lora" if ROWS[kind].file == "lora" else "lycoris.kohya")


@pytest.mark.parametrize("kind", ROWS)
def test_text_encoders_too(kind: str, make: Make, bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their answers from the written file are those that the live ones gave."""
    live: list[Tensor] = []
    finish = Run.finish

    def keep(self: Run) -> Any:
        training = self.training
        live.append(training.step.eval().texts(["a red disc"])[0]["hidden"])
        return finish(self)

    monkeypatch.setattr(Run, "finish", keep)
    summary = train(config.parse(make(kind, method={"text_encoder": True, "text_encoder_lr": RATES.get(kind, 3e-2)})))
    of, file = family(bases("sd")), read(Path(summary["adapter"]))
    (plain,) = of.texts(["a red disc"])
    apply.to_text_encoders(of, [(file, 1.0)])
    (made,) = of.texts(["a red disc"])
    assert (live[0] - plain["hidden"]).abs().max() > 0.02 and (made["hidden"] - live[0]).abs().max() < 1e-4


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] if k in ("rslora", "loha", "dora") else []) for k in sorted(ROWS.keys() - {"oft"})]
)
def test_convolutions_too(kind: str, trained: Any, bases: Bases) -> None:
    path, live = trained(kind, method={"targets": "all"})
    of = family(bases("sd"))
    kinds = {type(of.parts.skeleton("unet").get_submodule(m)).__name__ for _, m in read(path).modules}
    assert kinds == {"Linear", "Conv2d"}
    assert (through_ours(of, path) - live).abs().max() < 1e-4
    assert (through_lycoris(of, path, "lora_unet") - live).abs().max() < 1e-4


@pytest.mark.parametrize("kind", sorted(kind for kind, row in ROWS.items() if row.tensors))
@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_a_run_goes_on_from_a_file(kind: str, layout: str, trained: Any, make: Make, bases: Bases, tmp_path: Path) -> None:
    """The network begins where the file's ended, whatever its layout and its alpha, and learns on from there."""
    if layout != "kohya" and not ROWS[kind].low_rank:
        with pytest.raises(ConfigError, match=f"--format {layout}: holds LoRA and DoRA, and no {kind}"):
            trained(kind, run={"format": layout})
        return
    path, live = trained(kind, run={"format": layout, "out": str(tmp_path / "first")}, method={"rank_pattern": {"attn2": 2}})
    on = merge_settings(make(kind), {"method": {"start": str(path)}, "run": {"out": str(tmp_path / "second")}})
    for key in ("rank", "alpha", "targets"):
        del on["method"][key]
    runner = begun(config.parse(on))
    training = runner.training
    assert (output(training.step.nets["denoiser"].eval(), runner.prepared.work.family) - live).abs().max() < 1e-4
    runner.train()
    summary = runner.finish()
    assert summary is not None
    before, after = read(path), read(summary.written["adapter"])
    assert before.on("unet").keys() == after.on("unet").keys()
    assert {m: w.rank for m, w in before.on("unet").items()} == {m: w.rank for m, w in after.on("unet").items()}
    said = after.contract
    assert said and (said.rank, said.training_alpha) == (4, 10.0), "it trains on at the strength that it had"
    assert (through_ours(family(bases("sd")), summary.written["adapter"]) - live).abs().max() > 0.02


def test_a_start_that_does_not_fit_is_refused(trained: Any, make: Make, bases: Bases, tmp_path: Path) -> None:
    path, _ = trained("lora", method={"text_encoder": True}, run={"out": str(tmp_path / "first")})

    def refused(message: str, **more: Any) -> None:
        made = merge_settings(make("lora"), {"method": {"start": str(path)}, "run": {"out": str(tmp_path / "second")}})
        for key in ("rank", "alpha", "targets"):
            del made["method"][key]
        job = merge_settings(made, more)
        for what in (lambda: plan.plan(config.parse(job)), lambda: train(config.parse(job))):
            with pytest.raises(ConfigError, match=message):
                what()

    refused("changes the text_encoder too")
    refused("holds lora", method={"kind": "loha", "text_encoder": True})
    refused("was made for another base", model={"base": str(bases("sdxl"))}, method={"text_encoder": True})
    refused(r"method\.rank: is that of", method={"rank": 4, "text_encoder": True})
    refused(r"method\.alpha: is that of", method={"alpha": 1.0, "text_encoder": True})


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa", "olora"])
def test_initialisations(init: str, trained: Any, bases: Bases) -> None:
    """Those that take a part out of the base too: the file holds what was learned since, against the base as it was."""
    path, live = trained("lora", method={"init": init, "alpha": 5.0, "targets": "attention+ff"})
    of = family(bases("sd"))
    assert {w.rank for w in read(path).modules.values()} == ({8} if init in ("pissa", "olora") else {4})
    for reader in (through_ours, through_diffusers):
        assert (reader(of, path) - live).abs().max() < 1e-4


def test_ranks_alphas_and_rates_by_pattern(make: Make, tmp_path: Path) -> None:
    made = make("lora", method={"rank_pattern": {"attn2": 2, r"up_blocks.*attn1": 6}, "alpha_pattern": {r"\.to_q$": 3.0}})
    made = merge_settings(made, {"optim": {"lr_pattern": {"up_blocks": 0.5, "mid_block": 0.0}, "lora_plus": 4.0}})
    runner = begun(config.parse(made))
    training = runner.training
    layers: Mapping[str, Any] = adapter.layers(training.step.nets["denoiser"])
    for name, layer in layers.items():
        rank = 2 if "attn2" in name else 6 if "up_blocks" in name and "attn1" in name else 4
        assert layer.r["default"] == rank and layer.lora_alpha["default"] == (3.0 if name.endswith(".to_q") else 10.0), name
    rates = {id(p): g["lr"] for g in training.inner.param_groups for p in g["params"]}
    names = dict(training.step.nets["denoiser"].named_parameters())
    for name in (n for n in names if "lora_" in n):
        factor = (0.5 if "up_blocks" in name else 1) * (4 if "lora_B" in name else 1)
        if "mid_block" in name:
            assert id(names[name]) not in rates and not names[name].requires_grad
        else:
            assert rates[id(names[name])] == pytest.approx(3e-2 * factor), name


@pytest.mark.parametrize("kind", sorted(kind for kind, row in ROWS.items() if "max_norm" in row.takes))
def test_a_change_is_kept_within_its_norm(kind: str, trained: Any, bases: Bases, tmp_path: Path) -> None:
    def norms(**more: Any) -> Tensor:
        path, _ = trained(kind, method={"targets": "all", **more}, run={"out": str(tmp_path / str(more))})
        net = family(bases("sd")).parts.load("unet")
        return torch.stack([w.change(net.get_parameter(f"{m}.weight")).norm() for (_, m), w in read(path).modules.items()])

    free = norms()
    assert norms(max_norm=0.2).max() < 0.2001 < free.max()


@pytest.mark.parametrize(
    "method, optim, message",
    [
        ({"targets": "re:nowhere"}, {}, "re:nowhere: matches no layer"),
        ({"targets": "re:("}, {}, "no regular expression"),
        ({"rank_pattern": {"nowhere": 2}}, {}, "method.rank_pattern nowhere: matches nothing that trains"),
        ({"rank_pattern": {"attn1": 2, "to_q": 3}}, {}, "method.rank_pattern to_q: overlaps attn1"),
        ({"alpha_pattern": {"[": 2.0}}, {}, r"method.alpha_pattern \[: no regular expression"),
        ({}, {"lr_pattern": {"nowhere": 2.0}}, "optim.lr_pattern nowhere: matches nothing"),
        ({}, {"lr_pattern": {"denoiser": 0.0}}, "nothing would train"),
        ({"kind": "oft", "alpha": None, "rank": 5}, {}, "OFT turns blocks of so many inputs"),
        ({"kind": "oft", "alpha": None, "targets": "all"}, {}, "OFT cannot adapt the convolution"),
        ({"kind": "oft"}, {}, "method.alpha: is for --adapter lora, rslora, dora, loha, lokr"),
        ({"kind": "loha"}, {"lora_plus": 2.0}, "optim.lora_plus: is for --adapter lora, rslora, dora"),
        ({"kind": "lora", "factor": 4}, {}, "method.factor: is for --adapter lokr"),
        ({"kind": "dora", "max_norm": 1.0}, {}, "method.max_norm: is for --adapter lora"),
        ({"init": "pissa"}, {}, "method.init pissa: is for linear layers"),
        ({"init": "pissa", "max_norm": 1.0}, {}, "method.max_norm: bounds a change that begins at 0"),
        ({"kind": "nothing"}, {}, "method.kind"),
        ({"targets": "re:"}, {}, "an empty regular expression matches everything"),
        ({"init": "orthogonal", "rank_pattern": {"attn2.to_q": 3}, "targets": "attention"}, {}, "takes even ranks, and that of"),
        ({"kind": "oft", "alpha": None, "rank": 1}, {}, "one alone cannot be turned"),
    ],
)
def test_bad_settings_are_refused_before_a_model_is_loaded(
    method: Any, optim: Any, message: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Components, "load", lambda *a: pytest.fail("a model was loaded"))
    settings = merge_settings(make("lora"), {"method": method, "optim": optim})
    for what in (plan.plan, train):
        with pytest.raises(ConfigError, match=message):
            what(config.parse(settings))


@pytest.mark.parametrize("kind", ROWS)
def test_a_run_in_two_parts_is_a_run(kind: str, make: Make, tmp_path: Path) -> None:
    more = {"dropout": 0.3, "targets": "attention"} | ({"init": "pissa"} if kind == "rslora" else {})
    whole, parts = in_two_parts(make(kind, method=more, run={"checkpoint_every": 4}, optim={"ema": 0.5, "steps": 8}), tmp_path)
    assert Path(whole["adapter"]).read_bytes() == Path(parts["adapter"]).read_bytes()


def test_the_layers_that_were_asked_for_and_no_others(make: Make) -> None:
    """Of a list PEFT takes the ends of other names too: the last projection of FLUX.1 is also that of every single block."""
    runner = begun(config.parse(make("lora", "flux", method={"targets": "re:^proj_out$"})))
    training = runner.training
    assert list(adapter.layers(training.step.nets["denoiser"])) == ["proj_out"]


def test_a_type_is_its_row(trained: Any, bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another of PEFT's, Householder reflections (Yuan et al. 2024, arXiv:2405.17484), put in the place of one that is here."""
    reflections = AdapterType(
        "reflections", "HRAConfig", lambda m: {"r": m.rank}, "full", takes=ROWS["oft"].takes, change=lambda weight, turn: (
            weight.flatten(1) @ turn
        ).view_as(weight) - weight,
    )  # fmt: skip
    monkeypatch.setitem(ROWS, "oft", reflections)
    path, live = trained("oft", method={"targets": "all"})
    of = family(bases("sd"))
    assert "conv" in " ".join(m for _, m in read(path).modules)
    assert (through_ours(of, path) - live).abs().max() < 1e-4
    assert (through_lycoris(of, path, "lora_unet") - live).abs().max() < 1e-4


def test_oft_is_a_rotation_however_far_it_turns(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    row = ROWS["oft"]

    def change(weight: Tensor, turn: Tensor) -> Tensor:
        seen.append(turn)
        return row.change(weight, turn)

    monkeypatch.setitem(ROWS, "oft", replace(row, change=change))
    trained("oft")
    assert max(float((r - torch.eye(len(r))).abs().max()) for r in seen) > 0.3, "it must have turned for this to mean anything"
    assert max(float((r @ r.T - torch.eye(len(r))).abs().max()) for r in seen) < 1e-4


@pytest.mark.parametrize("method", [{"kind": "dora"}, {"kind": "lora", "init": "pissa", "targets": "attention"}], ids=str)
def test_what_stands_for_the_bases_weights_does_not_decay(method: dict[str, Any], make: Make) -> None:
    runner = begun(config.parse(make(method["kind"], method=method)))
    training = runner.training
    names = {id(p): n for n, p in training.trainable.items()}
    for group in training.inner.param_groups:
        for p in group["params"]:
            free = method["kind"] == "lora" or "magnitude" in names[id(p)]
            assert group["weight_decay"] == (0.0 if free else 0.01), names[id(p)]


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_dropout_leaves_the_mean_as_it_is(kind: str, make: Make) -> None:
    settings = make(kind, method={"dropout": 0.5, "targets": "attn1.to_q"})
    runner = begun(config.parse(settings))
    training = runner.training
    layer: Any = next(iter(adapter.layers(training.step.nets["denoiser"]).values()))
    with torch.no_grad():
        for p in training.trainable.values():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        x = torch.randn(1, layer.in_features)
        whole = layer.eval()(x) - layer.get_base_layer()(x)
        layer.train()
        mean = torch.stack([layer(x) - layer.get_base_layer()(x) for _ in range(4000)]).mean(0)
    assert float((mean * whole).sum() / whole.square().sum()) == pytest.approx(1, abs=0.1)


def test_the_rank_of_a_file_is_that_of_its_header(trained: Any) -> None:
    path, _ = trained("lora", method={"init": "pissa", "targets": "attention"})
    with safe_open(path, "pt") as f:
        assert f.metadata()["ss_network_dim"] == "8" and json.loads(f.metadata()["ft.contract"])["rank"] == 4


# Whole differences


@pytest.mark.parametrize(("kind", "form"), [("dora", "full"), ("dora", "svd"), ("oft", "auto"), ("lora", "full")])
def test_what_a_run_wrote_can_be_continued_from(kind: str, form: str, trained: Any, make: Make, bases: Bases, tmp_path: Path) -> None:
    """Of whole differences, rotations and norms are found again; the network begins where the file ends, and what it writes is read."""
    rank = 2 if (kind, form) == ("dora", "full") else 4  # of layers of 8 to 16: norms are found where the rank is small beside them
    few = {"targets": "re:attn1"} if kind == "dora" else {}  # the search for its norms takes a quarter of a second for each layer
    path, live = trained(kind, run={"format": form, "out": str(tmp_path / "first")}, method={"rank": rank} | few)
    there = through_ours(family(bases("sd")), path)
    assert form == "svd" or (there - live).abs().max() < 1e-4
    assert {w.kind for w in read(path).modules.values()} == {"lora" if form == "svd" else "full"}
    if form != "svd":
        assert (through_lycoris(family(bases("sd")), path, "lora_unet") - live).abs().max() < 1e-4
    on = merge_settings(make(kind), {"method": {"start": str(path)}, "run": {"out": str(tmp_path / "second"), "format": form}})
    on["method"] = {k: v for k, v in on["method"].items() if k not in ("rank", "alpha", "targets")}
    plan.plan(config.parse(on))
    runner = begun(config.parse(on))
    training = runner.training
    assert (output(training.step.nets["denoiser"].eval(), runner.prepared.work.family) - there).abs().max() < 1e-3
    runner.train()
    done = runner.finish()
    assert done
    after = read(done.written["adapter"])
    assert after.modules.keys() == read(path).modules.keys() and after.contract and after.contract.rank == rank
    assert (through_ours(family(bases("sd")), after.path) - there).abs().max() > 0.02


def test_differences_that_are_no_adapter_of_the_rank_are_refused(make: Make, bases: Bases, tmp_path: Path) -> None:
    net = family(bases("sd")).parts.skeleton("unet")
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{stem}.diff": torch.randn(net.get_parameter(f"{module}.weight").shape)}, tmp_path / "x.safetensors")
    on = merge_settings(make("lora"), {"method": {"start": str(tmp_path / "x.safetensors")}})
    on["method"] = {k: v for k, v in on["method"].items() if k in ("kind", "start")}
    with pytest.raises(ConfigError, match=r"is no lora of rank 8: \d+% of it would be lost"):
        train(config.parse(on))


def test_the_size_of_whole_differences_and_who_reads_them_is_said(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    job = make("dora", run={"format": "full"})
    made = plan.plan(config.parse(job))
    assert "whole differences of 48 layers" in made.text and "read by" not in made.text
    summary = train(config.parse(job))
    assert abs(Path(summary["adapter"]).stat().st_size / made.facts["file_bytes"] - 1) < 0.5
    assert "11 %" in plan.plan(config.parse(make("dora"))).text and "7 to 9 times" in plan.plan(config.parse(make("dora"))).text
    assert "67 to 75 %" in plan.plan(config.parse(make("lora", run={"format": "diffusers"}))).text
    assert "conv_in, conv_out" in plan.plan(config.parse(make("lora", method={"targets": "all"}))).text
    assert "hotswap" in plan.plan(config.parse(make("lora", method={"rank_pattern": {"attn2": 2}}))).text
    assert "read by" not in plan.plan(config.parse(make("lora"))).text
    card = (Path(summary["out"]) / "README.md").read_text(encoding="utf-8")
    assert "## Who reads it" in card and "diffusers" in card
