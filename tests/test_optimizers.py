"""Every optimizer, schedule and objective trains, stops and goes on to the same bytes; and what is not for it is refused by name."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from parts import Make, in_two_parts
from safetensors.torch import load_file

from finetune import config, libraries
from finetune.config.optim import Optim
from finetune.config.optimizers import OPTIMIZERS
from finetune.config.precedence import merge_settings
from finetune.errors import ConfigError
from finetune.families.components import Components
from finetune.methods.trainees import ParameterGroup
from finetune.training import device, optimizer, plan, schedule
from finetune.training.run import Run, train
from finetune.training.schedule import learning_rate

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own
ON_CPU = sorted(name for name, entry in OPTIMIZERS.items() if not entry.cuda)
FULL = {"method": {"kind": "full"}}
BF16: dict[str, Any] = {**FULL, "optim": {"masters": "bf16", "lr": 1e-4}}
HELD = {"data": {"holdout": "0.3"}, "run": {"holdout_every": 3}}  # to be looked at on the way must change nothing
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"optim": {"optimizer": name}} for name in ON_CPU},
    "bf16 masters": BF16,
    "bf16 masters, averaged": merge_settings(BF16, {"optim": {"ema": 0.5}}),
    "debiased, pyramid": {"objective": {"weighting": "debiased", "pyramid_levels": 2, "noise_offset": 0.05}},
    "soft min-SNR, huber": {"objective": {"weighting": "soft-min-snr", "loss": "huber", "input_perturbation": 0.1}},
    "p2, stratified, mode": {"objective": {"weighting": "p2", "stratified": True, "density": "mode", "t_min": 0.1}},
    "smooth l1, cosmap": {"objective": {"loss": "smooth-l1", "huber_schedule": "exponential", "density": "cosmap"}},
    "preserved": {"objective": {"preserve": "thing"}, "data": {"trigger": "sks"}},
    "preserved, live text": {"objective": {"preserve": "thing"}, "data": {"trigger": "sks"}, "method": {"text_encoder": True}},
    "zero terminal SNR": {"objective": {"zero_terminal_snr": True, "weighting": "min-snr"}, "base": "sd-v"},
    "flow, by resolution": {"objective": {"resolution_shift": True, "density": "logit-normal", "density_mean": 0.3}, "base": "flux"},
    "restarts": {"optim": {"schedule": "cosine-restarts"}},
}


@pytest.fixture
def make(settings: Make, bases: Callable[[str], Path]) -> Make:
    def made(**more: Any) -> dict[str, Any]:
        name = more.pop("base", "sd")
        small = {"model": {"base": str(bases(name))}, "data": {"resolution": 16}, "optim": {"steps": 8}}
        own = settings(**merge_settings(small, HELD, more))
        if "lr" not in more.get("optim", {}):
            del own["optim"]["lr"]
        return own

    return made


def learned(summary: dict[str, Any]) -> dict[str, torch.Tensor]:
    if "adapter" in summary:
        return load_file(summary["adapter"])
    return load_file(Path(summary["model"]) / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_in_two_parts_is_a_run(name: str, make: Make, tmp_path: Path) -> None:
    whole, parts = in_two_parts(merge_settings(make(**VARIANTS[name]), {"run": {"checkpoint_every": 4}}), tmp_path)
    again = learned(parts)
    for key, tensor in learned(whole).items():
        assert torch.equal(tensor, again[key]), key
    logged = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(r["loss"]) for r in logged if "loss" in r)


def scaled(monkeypatch: pytest.MonkeyPatch, autocast: bool, scale: float) -> None:
    """Training on a CPU as on a GPU in fp16: torch's own scaler, and its autocast or none."""

    def made(job: Any) -> Accelerator:
        accelerator = Accelerator(cpu=True, kwargs_handlers=[AutocastKwargs(enabled=autocast)])
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=5)
        return accelerator

    monkeypatch.setattr(device, "accelerator_for", made)


@pytest.mark.parametrize("name", ["adamw", *(pytest.param(n, marks=pytest.mark.slow) for n in ("prodigy", "schedule-free"))])
def test_fp16_skips_what_overflows_counts_it_and_goes_on(name: str, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a scale that is far too high; the network, its base and its activations are in fp16."""
    scaled(monkeypatch, True, 2.0**24)
    made = make(optim={"optimizer": name, "steps": 16}, run={"precision": "fp16", "checkpoint_every": 8, "save_dtype": "fp32"})
    whole, parts = in_two_parts(made, tmp_path)
    assert 3 <= whole["skipped_updates"] == parts["skipped_updates"] < 12
    again = learned(parts)
    assert all(torch.equal(tensor, again[key]) for key, tensor in learned(whole).items())
    assert f"updates that the fp16 scaler skipped | {whole['skipped_updates']}" in (tmp_path / "whole" / "README.md").read_text()
    monkeypatch.undo()
    plain = learned(train(config.parse(make(optim={"optimizer": name, "steps": 16}, run={"out": str(tmp_path / "plain")}))))
    moved = {k: float((learned(whole)[k] - plain[k]).norm() / plain[k].norm()) for k in plain if k.endswith("lora_up.weight")}
    assert moved and max(moved.values()) < 2


def test_a_scaler_that_skips_nothing_changes_nothing(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scales are powers of two, so that in fp32 a step is the same to the last bit; what is clipped is the gradient as it is unscaled."""
    made = make(optim={"max_grad_norm": 0.01}, run={"save_dtype": "fp32"})
    plain = learned(train(config.parse(merge_settings(made, {"run": {"out": str(tmp_path / "plain")}}))))
    scaled(monkeypatch, False, 2.0**16)
    summary = train(config.parse(merge_settings(made, {"run": {"out": str(tmp_path / "scaled")}})))
    assert summary["skipped_updates"] == 0
    assert all(torch.equal(tensor, plain[key]) for key, tensor in learned(summary).items())


@pytest.mark.parametrize("name", ON_CPU)
def test_every_optimizer_learns(name: str) -> None:
    """A quadratic, at the rate that is the default for it."""
    torch.manual_seed(0)
    target, p = torch.randn(64, 128), torch.nn.Parameter(torch.zeros(64, 128))
    job = config.parse({"data": {"path": "."}, "model": {"base": "sd15"}, "optim": {"optimizer": name, "steps": 1500}})
    made = optimizer.make(
        optimizer.torch_groups([ParameterGroup({"p": p}, job.optim.lr * {"prodigy": 1, "lion": 100}.get(name, 25), 0.0)]), job.optim, 0
    )
    for _ in range(job.optim.steps):
        p.grad = p.detach() - target
        optimizer.guard(made, p.grad.norm())
        made.step()
    assert float((p - target).square().mean()) < 0.02 * float(target.square().mean())


@pytest.mark.parametrize("name", ON_CPU)
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(name: str) -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.ones(64, 128))
    made = optimizer.make(optimizer.torch_groups([ParameterGroup({"p": p}, 1e-3, 0.01)]), Optim(optimizer=name), 0)
    for grad in (1.0, math.nan, 1.0, math.inf, 1.0):
        p.grad = torch.full((64, 128), grad)
        optimizer.guard(made, p.grad.norm())
        made.step()
        assert torch.isfinite(p).all()
        assert all(torch.isfinite(v.float()).all() for v in made.state[p].values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("name", ON_CPU)
def test_state_is_tensors_and_comes_back(name: str) -> None:
    torch.manual_seed(0)
    grads = torch.randn(6, 64, 128)
    runs = []
    for stop in (None, 3):
        p = torch.nn.Parameter(torch.ones(64, 128))

        def new(p: torch.nn.Parameter = p) -> torch.optim.Optimizer:
            return optimizer.make(optimizer.torch_groups([ParameterGroup({"p": p}, 1e-2, 0.01)]), Optim(optimizer=name), 0)

        made = new()
        for i, grad in enumerate(grads):
            if i == stop:
                kept = {k: v.clone() for k, v in optimizer.state(made, ["p"]).items()}
                assert all(isinstance(v, torch.Tensor) for v in kept.values())
                made = new()
                optimizer.restore(made, ["p"], kept)
            p.grad = grad.clone()
            made.step()
        runs.append(p.detach().clone())
    assert torch.equal(*runs)


def test_stochastic_rounding_is_right_on_average_and_keeps_what_fits() -> None:
    x = torch.full((200_000,), 1 + 0.3 * 2**-7)  # between 1 and its next number in bf16
    made = optimizer.rounded(x, torch.Generator().manual_seed(0))
    assert set(made.float().tolist()) == {1.0, 1 + 2**-7}
    assert float((made.float() - 1).mean()) == pytest.approx(0.3 * 2**-7, rel=0.02)
    fits = torch.randn(1000).bfloat16().float()
    assert torch.equal(optimizer.rounded(fits, torch.Generator().manual_seed(1)).float(), fits)


def test_bf16_masters_move_by_steps_that_plain_rounding_would_lose(make: Make) -> None:
    """At a rate of 1e-5 a weight of size 1 has no next number in bf16 that is near enough."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    made = optimizer.make(optimizer.torch_groups([ParameterGroup({"p": p}, 1e-5, 0.0)]), Optim(masters="bf16"), 0)
    for _ in range(200):
        p.grad = torch.ones_like(p)
        made.step()
    assert p.dtype == torch.bfloat16 and float(p.float().mean()) == pytest.approx(1 - 200 * 1e-5, abs=3e-4)
    assert {v.dtype for v in made.state[p].values()} == {torch.float32}


SHAPES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "constant": ({}, [1, 1, 1, 1]),
    "linear": ({}, [1, 0.75, 0.5, 0.25]),
    "cosine": ({}, [1, 0.8536, 0.5, 0.1464]),
    "cosine-restarts": ({"cycles": 2}, [1, 0.5, 1, 0.5]),
    "polynomial": ({"power": 2}, [1, 0.5625, 0.25, 0.0625]),
    "wsd": ({"decay": 0.5}, [1, 1, 1, 0.5]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_schedules(name: str) -> None:
    more, expected = SHAPES[name]
    o = Optim(schedule=name, steps=6, warmup=2, **more)
    assert [learning_rate(o, s) for s in range(6)] == pytest.approx([0.5, 1.0, *expected], abs=1e-4)


def test_the_tables_and_the_settings_name_the_same() -> None:
    from finetune.config.objective import Objective
    from finetune.objectives.build import DENSITIES
    from finetune.objectives.errors import ERRORS, SCHEDULES
    from finetune.objectives.weights import WEIGHTS

    def named(section: Any, key: str) -> set[str]:
        kinds = section.model_fields[key].annotation
        found = [n for a in (kinds, *get_args(kinds)) for n in get_args(a)]
        return {n for n in found if isinstance(n, str)}

    assert optimizer.MAKERS.keys() == OPTIMIZERS.keys() and named(Optim, "schedule") == schedule.SHAPES.keys() == SHAPES.keys()
    assert named(Objective, "weighting") == WEIGHTS.keys() and named(Objective, "loss") == ERRORS.keys()
    assert named(Objective, "huber_schedule") == SCHEDULES.keys() and named(Objective, "density") == DENSITIES.keys()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"optim": {"optimizer": "paged-adamw8bit"}}, "--optimizer paged-adamw8bit: needs an NVIDIA device"),
        ({"optim": {"optimizer": "prodigy", "lora_plus": 4.0}}, "finds one rate for all that trains"),
        ({"optim": {"optimizer": "schedule-free", "schedule": "cosine"}}, "schedule-free is in the place of one"),
        ({"optim": {"optimizer": "schedule-free", "ema": 0.9}}, "averages by itself"),
        ({"optim": {"schedule": "cosine-restarts", "cycles": 9}}, "optim.cycles 9: more than there are steps"),
        ({"optim": {"cycles": 3}}, "optim.cycles: is for --schedule cosine-restarts"),
        ({"optim": {"warmup": 9}}, "optim.warmup 9 is longer than optim.steps 8"),
        ({"optim": {"masters": "bf16"}}, "optim.masters bf16: is for all weights"),
        ({**FULL, "optim": {"masters": "bf16", "optimizer": "lion"}}, "optim.masters bf16: is for adamw, not lion"),
        ({**FULL, "optim": {"masters": "bf16"}, "run": {"precision": "no"}}, "with --precision bf16, not no"),
        ({"optim": {"optimizer": "schedule-free", "betas": [0.0, 0.999]}}, "averages with the first, which must be above 0"),
        ({"optim": {"optimizer": "adafactor", "betas": [0.8, 0.999]}}, "--optimizer adafactor has none"),
        ({"optim": {"optimizer": "sgd"}}, "optim.optimizer"),
        ({"optim": {"optimizer": "torch.optim.SGD"}}, "optim.optimizer"),
    ],
)
def test_bad_settings_are_refused_before_a_model_is_loaded(
    more: dict[str, Any], message: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Components, "load", lambda *a: pytest.fail("a model was loaded"))
    for what in (plan.plan, train):
        with pytest.raises(ConfigError, match=message):
            what(config.parse(make(**more)))


def test_a_missing_package_is_named_with_its_install_line(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "installed", lambda name: False)
    with pytest.raises(ConfigError) as e:
        train(config.parse(make(optim={"optimizer": "prodigy"})))
    assert "prodigyopt" in e.value.message and "pip install 'finetune-diffusion[optimizers]'" in str(e.value.hint)


def test_rates_of_all_that_trains_suit_the_optimizer(make: Make) -> None:
    def rates(name: str, **method: Any) -> list[float]:
        job = config.parse(make(optim={"optimizer": name}, method=method))
        return [g["lr"] for g in plan.plan(job).facts["groups"]]

    assert rates("prodigy", text_encoder=True) == [1.0, 1.0] and rates("prodigy", new_tokens=["<x>"]) == [1.0, 1.0]
    assert rates("lion", new_tokens=["<x>"]) == pytest.approx([4e-5, 1e-3]) and rates("adamw", text_encoder=True) == pytest.approx(
        [2e-4, 4e-5]
    )


@pytest.mark.parametrize(("name", "rate", "small"), [("adamw", 2e-4, 1.5e-3), ("prodigy", 1.0, 1.0), ("lion", 4e-5, 3e-4)])
def test_rates_that_suit_the_optimizer_and_the_base(name: str, rate: float, small: float) -> None:
    def made(**more: Any) -> Any:
        return config.parse(merge_settings({"data": {"path": "."}, "optim": {"optimizer": name}}, more)).optim

    assert made().lr == made(model={"base": "tiny"}).lr == pytest.approx(small)
    assert made(model={"base": "sd15"}).lr == pytest.approx(rate)
    assert made().betas == ((0.9, 0.99) if name == "lion" else (0.9, 0.999))
    assert made(optim={"lr": 3e-3}).lr == 3e-3
    if name == "adamw":
        assert made(method={"kind": "lokr"}).lr == pytest.approx(3 * small) and made(method={"kind": "oft"}).lr == pytest.approx(small)


def test_schedule_free_is_written_averaged(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file holds the average that its authors call x, not the point y at which gradients are taken."""
    seen: dict[str, torch.Tensor] = {}
    finish = Run.finish

    def keep(self: Run) -> Any:
        training = self.training
        inner, name = training.inner, next(n for n in training.trainable if "lora_B" in n)
        p = training.trainable[name]
        beta = inner.param_groups[0]["betas"][0]
        seen.update(y=p.detach().clone(), x=p.detach() + (inner.state[p]["z"] - p.detach()) * (1 - 1 / beta))
        return finish(self)

    job = config.parse(make(optim={"optimizer": "schedule-free", "lr": 1e-2}, run={"save_dtype": "fp32"}))
    monkeypatch.setattr(Run, "finish", keep)
    summary = train(job)
    ups = [t for k, t in load_file(summary["adapter"]).items() if "lora_up" in k and t.shape == seen["x"].shape]
    strength = 0.5  # alpha / rank, folded in
    assert any(torch.allclose(t, strength * seen["x"], atol=1e-7) for t in ups) and not torch.allclose(seen["x"], seen["y"])
