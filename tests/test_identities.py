"""Identities of what is learned: weights, errors, timesteps and noise, each against its paper's formula."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune import config
from finetune.config.objective import Objective as Settings
from finetune.data.batch import Batch
from finetune.draws import StepDraws
from finetune.errors import ConfigError
from finetune.objectives import timesteps
from finetune.objectives.build import DENSITIES, objective
from finetune.objectives.diffusion import TARGETS, Diffusion, Schedule, add_noise
from finetune.objectives.errors import ERRORS, PseudoHuber
from finetune.objectives.flow import ByResolution, Flow, FlowMatching
from finetune.objectives.noise import Noise
from finetune.objectives.objective import Ask, Denoising
from finetune.objectives.preserve import Preserving
from finetune.objectives.timesteps import LogitNormal, Mode, cosmap, stratified
from finetune.objectives.weights import P2, WEIGHTS, Debiased, MinSNR, SoftMinSNR, reparametrised

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS = (1 - BETAS).cumprod(0)
ZERO = torch.cat([ALPHAS[:-1], torch.zeros(1, dtype=torch.float64)])
SHAPE = torch.Size([1, 4, 8, 8])
T = torch.tensor([0, 1, 250, 500, 900, 999])
# What each paper gives to an error in x_0, as functions of SNR.
PAPERS: dict[str, Callable[[Tensor], Tensor]] = {
    "min-snr": lambda s: s.clamp(max=5),
    "soft-min-snr": lambda s: 1 / (1 / s + 1 / 5),
    "debiased": lambda s: s.sqrt(),
    "p2": lambda s: s / (1 + s),
}


def draws(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, 3, 3, generator=g).to(dtype), torch.randn(6, 4, 3, 3, generator=g).to(dtype)


def cost(objective: Denoising, answer: Callable[[Tensor, Tensor], Tensor], x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The error of an answer at noise and times that are given."""
    noised = objective.mixed(x_0, noise, t)
    return objective.cost(answer(noised.x_t, noised.t), noised)


def predictions(kind: str, s: Schedule, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """What a network of a kind says that means `x_0`."""
    signal, sigma = s.coefficients(t, x_t)
    noise = (x_t - signal * x_0) / sigma
    return {"epsilon": noise, "v_prediction": signal * noise - sigma * x_0, "sample": x_0}[kind]


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_is_its_papers_whatever_is_predicted(name: str, kind: str) -> None:
    x_0, noise = draws()
    s = Schedule(ALPHAS, kind)
    x_t = add_noise(s, x_0, noise, T)
    answer = predictions(kind, s, x_0 + 0.1, x_t, T)
    loss = cost(Diffusion(s, WEIGHTS[name]()), lambda *_: answer, x_0, noise, T).flatten(1).mean(1)
    snr = s.snr(T).double()
    plain = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[kind]
    expected = PAPERS[name](snr) if name in PAPERS else plain
    assert torch.allclose(loss, 0.01 * expected, rtol=1e-4)


def test_weights_in_epsilon_are_the_papers_formulas() -> None:
    snr = torch.tensor([0.0, 0.01, 1.0, 4.9, 5.0, 100.0])
    assert torch.allclose(MinSNR(5)(snr)[1:], snr[1:].clamp(max=5) / snr[1:]) and MinSNR(5)(snr)[0] == 1
    assert torch.allclose(SoftMinSNR(5)(snr), 5 / (5 + snr))
    assert torch.allclose(P2(0.5)(snr), 1 / (1 + snr).sqrt())
    assert torch.allclose(Debiased()(snr)[1:], 1 / snr[1:].sqrt()) and torch.isfinite(Debiased()(snr)).all()


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_and_errors_are_finite_at_zero_terminal_snr(name: str, kind: str) -> None:
    x_0, noise = draws(torch.float32)
    s = Schedule(ZERO, kind)
    for error in ERRORS:
        made = Diffusion(s, WEIGHTS[name](), error=ERRORS[error](0.1, "snr"))
        assert torch.isfinite(cost(made, lambda x, t: x, x_0, noise, T)).all()
    assert name == "uniform" or reparametrised(WEIGHTS[name](), s.snr(T), kind)[-1] < 2e-3


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("kind", [*TARGETS, "flow"])
def test_a_perfect_prediction_costs_nothing(kind: str, error: str) -> None:
    x_0, noise = draws()
    how = ERRORS[error](0.1, "snr")
    made: Denoising
    if kind == "flow":
        made, t, answer = FlowMatching(Flow(), error=how), torch.linspace(0, 1, 6, dtype=torch.float64), noise - x_0
    else:
        s = Schedule(ALPHAS, kind)
        made, t, answer = Diffusion(s, error=how), T, TARGETS[kind](s, x_0, noise, T)
    assert cost(made, lambda *_: answer, x_0, noise, t).abs().max() < 1e-12
    assert cost(made, lambda *_: answer + 1, x_0, noise, t).min() > 0.01


def test_flow_is_the_picture_at_0_and_the_noise_at_1() -> None:
    x_0, noise = draws()
    x_t = FlowMatching(Flow()).mixed(x_0, noise, torch.tensor([0.0, 1.0] * 3)).x_t
    assert torch.equal(x_t[::2], x_0[::2]) and torch.equal(x_t[1::2], noise[1::2])


@pytest.mark.parametrize("t", [0, 500, 999])
def test_add_noise_keeps_signal_and_noise_scales(t: int) -> None:
    g = torch.Generator().manual_seed(0)
    x_0, noise = 3 * torch.randn(64, 4, 16, 16, generator=g), torch.randn(64, 4, 16, 16, generator=g)
    x_t = add_noise(Schedule(ALPHAS, "epsilon"), x_0, noise, torch.full((64,), t))
    a = float(ALPHAS[t])
    assert x_t.var() == pytest.approx(9 * a + 1 - a, rel=0.02)
    assert (x_t * x_0).mean() == pytest.approx(9 * a**0.5, rel=0.02, abs=0.02)


def test_pseudo_huber_is_square_near_and_absolute_far() -> None:
    small, large, zero = torch.tensor([1e-4]).double(), torch.tensor([1e4]).double(), torch.zeros(1).double()
    huber, smooth = PseudoHuber(0.1, "constant"), PseudoHuber(0.1, "constant", smooth=True)
    assert huber(small, zero, zero) == pytest.approx(1e-8, rel=1e-4) and huber(large, zero, zero) == pytest.approx(0.2e4, rel=1e-4)
    assert smooth(large, zero, zero) == pytest.approx(2e4, rel=1e-4)
    for schedule, clean, noisy in (("exponential", 1.0, 0.1), ("snr", 1.0, 0.1)):
        at = PseudoHuber(0.1, schedule)
        for c, progress, ratio in ((clean, 0.0, 0.0), (noisy, 1.0, math.inf)):
            expected = 2 * c * (math.sqrt(9 + c * c) - c)
            assert at(torch.tensor([3.0]), torch.tensor([progress]), torch.tensor([ratio])) == pytest.approx(expected, rel=1e-6)


# Timesteps

Levels = NDArray[np.float64]


def pdf_logit_normal(t: Levels, m: float, s: float) -> Levels:
    density: Levels = np.exp(-((np.log(t / (1 - t)) - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi) * t * (1 - t))
    return density


@pytest.mark.parametrize(
    ("density", "pdf"),
    [
        (LogitNormal(), lambda t: pdf_logit_normal(t, 0, 1)),
        (LogitNormal(-0.5, 0.7), lambda t: pdf_logit_normal(t, -0.5, 0.7)),
        (cosmap, lambda t: 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t * t)),
        (timesteps.uniform, lambda t: np.ones_like(t)),
    ],
)
def test_levels_are_as_dense_as_the_paper_says(density: Any, pdf: Any) -> None:
    levels = density(torch.rand(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).numpy()
    found, _ = np.histogram(levels, 20, (0, 1), density=True)
    fine = (np.arange(20_000) + 0.5) / 20_000
    assert np.allclose(found, pdf(fine).reshape(20, -1).mean(1), atol=0.03)


def test_mode_draws_the_middle_more_and_stays_in_bounds() -> None:
    u = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scale in (-1.0, 0.0, 1.29, 1.75):
        levels = Mode(scale)(u)
        middle = float(((levels > 0.25) & (levels < 0.75)).double().mean())
        assert levels.min() >= 0 and levels.max() < 1
        assert (middle > 0.55) if scale > 1 else (middle < 0.45) if scale < 0 else middle == pytest.approx(0.5, abs=0.01)


def test_levels_stay_within_their_range() -> None:
    u = torch.rand(10_000, dtype=torch.float64)
    for density in DENSITIES:
        settings = Settings.model_validate({"density": density, "t_min": 0.2, "t_max": 0.6})
        diffusion, flow = objective(Schedule(ALPHAS, "epsilon"), settings), objective(Flow(3.0), settings)
        assert isinstance(diffusion, Diffusion) and isinstance(flow, FlowMatching)
        t, sigma = diffusion.timesteps(u, SHAPE), flow.timesteps(u, SHAPE)
        assert 200 <= int(t.min()) and int(t.max()) < 600 and t.dtype == torch.int64
        assert 0.2 <= float(sigma.min()) + 1e-6 and float(sigma.max()) < 0.6 + 1e-6, "whatever the shift"


@pytest.mark.parametrize("total", [1, 4, 7])
def test_strata_hold_one_slot_each_and_every_slot_is_uniform(total: int) -> None:
    seen = []
    for step in range(400):
        u = stratified(StepDraws(3, step, range(total), total))
        assert sorted((u * total).long().tolist()) == list(range(total))
        seen.append(u[0])
    assert float(torch.stack(seen).mean()) == pytest.approx(0.5, abs=0.05) and float(torch.stack(seen).std()) == pytest.approx(
        0.29, abs=0.02
    )
    parts = [stratified(StepDraws(3, 0, [i], total)) for i in range(total)]
    assert torch.equal(torch.cat(parts), stratified(StepDraws(3, 0, range(total), total))), "whichever process a slot is in"


def test_the_shift_by_resolution_is_that_of_flux() -> None:
    shift = ByResolution(256, 4096, 0.5, 1.15)
    assert shift(torch.Size([1, 16, 32, 32])) == pytest.approx(math.exp(0.5))
    assert shift(torch.Size([1, 16, 128, 128])) == pytest.approx(math.exp(1.15))
    made = FlowMatching(Flow(), timesteps.uniform, by_resolution=shift)
    u = torch.tensor([0.5], dtype=torch.float64)
    small, large = (float(made.timesteps(u, torch.Size([1, 16, n, n]))) for n in (32, 128))
    assert small == pytest.approx(math.exp(0.5) / (1 + math.exp(0.5))) and small < large


# Noise


def shaped(**how: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The noise as it is drawn, as it is to be predicted, and as it is mixed in."""
    made, x_0 = Noise(**how), torch.zeros(32, 4, 16, 16)
    draws = StepDraws(0, 5, range(32), 32)
    noise, added = made(draws, x_0)
    halves = [made(StepDraws(0, 5, slots, 32), x_0[:16]) for slots in (range(16), range(16, 32))]
    for whole, parts in zip((noise, added), zip(*halves, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts)), "a function of (seed, step, slot)"
    assert not torch.equal(added, made(StepDraws(0, 6, range(32), 32), x_0)[1])
    return draws.normal("noise", (4, 16, 16)), noise, added


def test_noise_is_left_alone_where_nothing_is_asked() -> None:
    plain, noise, added = shaped()
    assert torch.equal(plain, noise) and torch.equal(plain, added)


def test_an_offset_moves_channels_as_a_whole() -> None:
    plain, noise, added = shaped(offset=0.3)
    moved = noise - plain
    assert moved.std((2, 3)).max() < 1e-6 and moved[:, :, 0, 0].std() == pytest.approx(0.3, rel=0.2) and torch.equal(noise, added)


def test_a_pyramid_is_coarse_and_of_unit_variance() -> None:
    plain, noise, _ = shaped(pyramid=4, discount=0.8)
    assert noise.flatten(1).std(1).tolist() == pytest.approx([1.0] * 32, rel=1e-4)

    def neighbours(x: Tensor) -> float:
        return float((x[..., 1:] * x[..., :-1]).mean())

    assert abs(neighbours(plain)) < 0.02 < 0.3 < neighbours(noise)


def test_a_perturbation_is_seen_and_not_predicted() -> None:
    plain, noise, added = shaped(perturbation=0.5)
    assert torch.equal(plain, noise) and (added - noise).std() == pytest.approx(0.5, rel=0.02)
    x_0, s, t = torch.zeros_like(noise), Schedule(ALPHAS, "epsilon"), torch.full((32,), 500)
    noised = Diffusion(s).mixed(x_0, noise, t, added)
    assert Diffusion(s).cost(noise, noised).max() == 0 and torch.equal(noised.x_t, add_noise(s, x_0, added, t))


# Preservation


def test_preserving_costs_what_the_answer_to_the_other_caption_has_moved() -> None:
    x_0, _ = draws()
    s, calls = Schedule(ALPHAS, "epsilon"), []

    class Asked(Ask):
        def predict(self, x_t: Tensor, t: Tensor, captions: Any = None, weights: Any = "live") -> Tensor:
            calls.append((captions, weights, torch.is_grad_enabled()))
            noise = Noise()(draws_of, x_0)[0]
            return noise + (0.0 if weights == "base" else 0.1 if captions is None else 0.2)

        def decode(self, latents: Tensor) -> Tensor:
            raise AssertionError("a denoiser is preserved without the decoder")

    draws_of = StepDraws(0, 0, range(6), 6)
    captions = ["a sks", "sks", "nothing to keep", None, "sks too", "sks"]
    batch = Batch({"x_0": x_0.float()}, captions, torch.ones(6), range(6))
    made = Preserving(Diffusion(s), 3.0, "dog", "sks")(Asked(), batch, draws_of)
    learned = torch.tensor([c is not None for c in captions], dtype=torch.float32).view(-1, 1, 1, 1)
    kept = torch.tensor([1.0, 1, 0, 1, 1, 1]).view(-1, 1, 1, 1)
    assert torch.allclose(made, (0.01 * learned + 3 * 0.04 * kept).expand_as(made), atol=1e-5)
    preserved = ["a dog", "dog", "nothing to keep", None, "dog too", "dog"]
    assert calls == [(None, "live", True), (preserved, "base", False), (preserved, "live", True)]


def test_captions_that_are_preserved_say_the_word_for_the_trigger() -> None:
    made = Preserving(Diffusion(Schedule(ALPHAS, "epsilon")), 1.0, "dog", "sks dog")
    assert made.captions("a sks dog on sks dog grass") == ("a dog on dog grass",) and made.captions("a cat") == ("a cat",)
    art = Preserving(Diffusion(Schedule(ALPHAS, "epsilon")), 1.0, "painting", "art")
    assert art.captions("art, a cart in the park") == ("painting, a cart in the park",), "a part of another word is not the trigger"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 3.0}, "objective.gamma: is for objective.weighting min-snr"),
        ({"huber_c": 0.2}, "objective.huber_c: is for objective.loss huber"),
        ({"density_mean": 1.0}, "objective.density_mean: is for objective.density logit-normal"),
        ({"density_scale": 1.0}, "objective.density_scale: is for objective.density mode"),
        ({"pyramid_discount": 0.5}, "objective.pyramid_discount: is for objective.pyramid_levels"),
        ({"preserve_weight": 0.5}, "objective.preserve_weight: is for objective.preserve"),
        ({"preserve": "dog"}, "there is no trigger"),
        ({"t_min": 0.5, "t_max": 0.4}, "objective.t_min 0.5: must be below objective.t_max 0.4"),
        ({"weighting": "snr"}, "objective.weighting"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.parse({"data": {"path": "."}, "objective": settings})
    with pytest.raises(ConfigError, match=r"holds the trigger"):
        config.parse({"data": {"path": ".", "trigger": "sks"}, "objective": {"preserve": "sks dog"}})
    with pytest.raises(ConfigError, match=r"only an adapter"):
        config.parse({"data": {"path": ".", "trigger": "sks"}, "objective": {"preserve": "dog"}, "method": {"kind": "full"}})
