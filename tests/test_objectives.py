"""Identities of the objectives, the guards round the step, and the statistics."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config.optim import Optim
from finetune.data.index_plan import Slot
from finetune.errors import FinetuneError
from finetune.evaluation.heldout import paired, student_t
from finetune.methods.trainees import ParameterGroup
from finetune.objectives.diffusion import TARGETS, Diffusion, Schedule, add_noise
from finetune.objectives.weights import MinSNR, reparametrised
from finetune.training import loop, optimizer, run
from finetune.training.schedule import learning_rate

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS = (1 - BETAS).cumprod(0)


@pytest.fixture
def draws() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, 3, 3, generator=g), torch.randn(6, 4, 3, 3, generator=g), torch.tensor([0, 1, 250, 500, 900, 999])


def as_x_0(kind: str, s: Schedule, x_t: torch.Tensor, prediction: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    signal, sigma = s.coefficients(t, x_t)
    return {"epsilon": (x_t - sigma * prediction) / signal, "v_prediction": signal * x_t - sigma * prediction, "sample": prediction}[kind]


@pytest.mark.parametrize("kind", TARGETS)
def test_every_target_is_the_same_clean_picture(kind: str, draws: Any) -> None:
    x_0, noise, t = draws
    s = Schedule(ALPHAS.double(), kind)
    x_t = add_noise(s, x_0.double(), noise.double(), t)
    assert torch.allclose(as_x_0(kind, s, x_t, TARGETS[kind](s, x_0.double(), noise.double(), t), t), x_0.double(), atol=1e-5)


@pytest.mark.parametrize("kind", TARGETS)
def test_min_snr_weighs_the_same_error_in_x_0_alike(kind: str, draws: Any) -> None:
    # The weight that an error in x_0 gets must be min(SNR, gamma), whatever the network predicts.
    x_0, noise, t = draws
    s, d = Schedule(ALPHAS.double(), kind), torch.double
    x_t, wrong = add_noise(s, x_0.to(d), noise.to(d), t), (x_0 + 0.1).to(d)
    signal, sigma = s.coefficients(t, x_t)
    epsilon = (x_t - signal * wrong) / sigma
    prediction = {"epsilon": epsilon, "v_prediction": signal * epsilon - sigma * wrong, "sample": wrong}[kind]
    objective = Diffusion(s, MinSNR(5.0))
    error = objective.cost(prediction, objective.mixed(x_0.to(d), noise.to(d), t)).flatten(1).mean(1)
    assert torch.allclose(error, 0.01 * s.snr(t).double().clamp(max=5), rtol=1e-4)


def test_min_snr_is_finite_at_zero_terminal_snr() -> None:
    zero = ALPHAS.clone()
    zero[-1] = 0.0
    for kind in TARGETS:
        s = Schedule(zero, kind)
        weight = reparametrised(MinSNR(5.0), s.snr(torch.tensor([999, 0])), kind)
        assert torch.isfinite(weight).all()


def test_the_schedule_is_the_models_own(base: Path) -> None:
    from finetune.families import load, source

    s = load.family(source.resolve_base(str(base))).schedule()
    assert isinstance(s, Schedule)
    assert torch.allclose(s.alphas_cumprod, ALPHAS, atol=1e-6) and s.prediction_type == "epsilon"


# Guards


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    adamw = optimizer.make(optimizer.torch_groups([ParameterGroup({"p": p}, 0.1, 0.01)]), Optim(), 0)
    for grad, dropped in ((1.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)):
        before = p.detach().clone(), {k: v.clone() for k, v in adamw.state[p].items()}
        p.grad = torch.full((3,), grad)
        assert optimizer.guard(adamw, p.grad.norm()) == dropped
        adamw.step()
        if dropped:
            assert torch.equal(p, before[0]) and all(torch.equal(v, before[1][k]) for k, v in adamw.state[p].items())
        else:
            assert not torch.equal(p, before[0])


def test_a_run_stops_at_a_loss_that_is_not_finite(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(optim={"steps": 4}, run={"checkpoint_every": 1})
    original = loop.loss_sum
    calls = iter(range(100))
    monkeypatch.setattr(loop, "loss_sum", lambda *a: original(*a) * (math.nan if next(calls) == 2 else 1.0))
    with pytest.raises(FinetuneError, match=r"not finite at step 7, with \d\d\.png"):
        train(optim={"steps": 12}, run={"checkpoint_every": 1, "log_every": 1})
    monkeypatch.undo()
    steps = [p.name for p in sorted((tmp_path / "out" / "checkpoints").glob("step-*"))]
    assert steps[-1] == "step-00000006", "the last good checkpoint stays"


def test_the_canary_stops_a_run_that_does_not_learn(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "set_rate", lambda adamw, *_: [g.update(lr=0.0) for g in adamw.param_groups])
    with pytest.raises(FinetuneError, match="64 of 64 trainable tensors had no gradient or did not move in 10 steps"):
        train(optim={"steps": 12})


def test_an_fp16_scaler_may_skip_but_not_for_ever() -> None:
    class Fp16:
        scaler = object()

        @staticmethod
        def reduce(tensor: torch.Tensor, how: str) -> torch.Tensor:
            return tensor

    class Names:
        samples = (type("S", (), {"name": "00.png"})(),)

    class Plan:
        @staticmethod
        def slots(step: int) -> list[Any]:
            return [Slot(0, 0, 1.0)]

    state = loop.Training(None, Fp16(), None, None, {}, None, None, Plan(), Names(), None)  # type: ignore[arg-type]
    good, bad = (torch.tensor(1.0), torch.tensor(0.0)), (torch.tensor(math.nan), torch.tensor(1.0))
    seen = 0
    with pytest.raises(FinetuneError, match=r"00\.png"):
        for step in range(100):
            state.ring += [(2 * step, *good), (2 * step + 1, *bad)]
            assert loop.mean_loss(state) == 1.0, "the mean is over finite losses"
            seen += 1
    assert 20 <= seen < 40


def test_masters_are_fp32_whatever_the_base(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    finish = run.Run.finish

    def keep(self: run.Run) -> Any:
        kept.append(self.training)
        return finish(self)

    monkeypatch.setattr(run.Run, "finish", keep)
    train(run={"precision": "bf16"}, optim={"steps": 12})
    assert {p.dtype for p in kept[0].trainable.values()} == {torch.float32}
    frozen = {p.dtype for n, p in kept[0].module.named_parameters() if "lora" not in n}
    assert frozen == {torch.bfloat16}


@pytest.mark.parametrize("method", [{}, {"text_encoder": True}, {"new_tokens": ["<x>"], "vectors": 2}])
def test_gradient_checkpointing_changes_no_gradient(settings: Callable[..., dict[str, Any]], method: dict[str, Any]) -> None:
    import gradients

    plain = gradients.gradients(settings(method=method), torch.float32, 0)
    spared = gradients.gradients(settings(method=method, run={"gradient_checkpointing": True}), torch.float32, 0)
    assert plain.keys() == spared.keys() and all(g.any() for g in plain.values())
    assert max(float((plain[n] - spared[n]).norm() / plain[n].norm()) for n in plain) < 1e-6


def test_learning_rates() -> None:
    rates = [learning_rate(Optim(schedule="cosine", warmup=2, steps=10), s) for s in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[6] == pytest.approx(0.5) and rates[-1] < 0.05
    assert [learning_rate(Optim(schedule="linear", steps=4), s) for s in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_ema_is_what_is_written(train: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    live, averaged = (load_file(train(optim={"ema": e}, run={"out": str(tmp_path / str(e))})["adapter"]) for e in (None, 0.5))
    assert any(not torch.equal(live[k], averaged[k]) for k in live)


def test_sections_of_the_average() -> None:
    shadow, parameter = [torch.zeros(1)], [torch.ones(1)]
    optimizer.ema_update(shadow, parameter, 0.9, 0)
    assert shadow[0] == pytest.approx(0.9), "the ramp: d = 1 / 10 at step 0"


# Statistics


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (99, 1.984)])
def test_students_t(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, rel=0.005)


def test_a_paired_interval() -> None:
    before = torch.tensor([1.0, 2.0, 3.0, 4.0])
    change = paired(before, before - torch.tensor([0.1, 0.2, 0.1, 0.2]))
    assert (
        change.mean == pytest.approx(-0.15, rel=1e-5)
        and change.high < 0
        and change.high == pytest.approx(-0.15 + 3.182 * 0.057735 / 2, rel=1e-2)
    )
    assert paired(before[:1], before[:1]).low == -math.inf


def test_held_out_losses_repeat(train: Any, tmp_path: Path) -> None:
    values = []
    for name in ("a", "b"):
        train(data={"holdout": "0.4"}, run={"out": str(tmp_path / name), "seed": 1 if name == "a" else 2}, optim={"steps": 1})
        lines = [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        values.append(lines[0]["held_out_loss"])
    assert values[0] == values[1], "the base's held-out loss depends on the pictures alone, not on the run's seed"
