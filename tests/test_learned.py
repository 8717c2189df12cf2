"""What a run is told to learn is what its step computes, its file says, and its pictures are drawn with."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import Bases, Make
from torch import Tensor

from finetune import config
from finetune.adapters.read import read
from finetune.config.precedence import merge_settings
from finetune.errors import ConfigError
from finetune.families import load, source
from finetune.objectives.build import objective
from finetune.objectives.diffusion import Diffusion, Schedule
from finetune.objectives.errors import PseudoHuber
from finetune.objectives.objective import Weights
from finetune.objectives.timesteps import Mode
from finetune.objectives.weights import P2
from finetune.preparation.class_pictures import ClassPictures
from finetune.sampling import draw, generate
from finetune.sampling.generate import Request
from finetune.training.run import Run, begun, train


@pytest.fixture
def make(settings: Make, bases: Bases) -> Make:
    def made(name: str = "sd", **more: Any) -> dict[str, Any]:
        small = {"model": {"base": str(bases(name))}, "data": {"resolution": 16}, "optim": {"steps": 4, "lr": 1e-2}}
        return settings(**merge_settings(small, more))

    return made


def test_settings_reach_the_objective(make: Make, bases: Bases) -> None:
    more = {
        "weighting": "p2", "gamma": 0.5, "loss": "smooth-l1", "huber_c": 0.2, "huber_schedule": "constant", "density": "mode",
        "density_scale": -0.5, "t_min": 0.1, "t_max": 0.8, "noise_offset": 0.1, "pyramid_levels": 2, "pyramid_discount": 0.7,
        "input_perturbation": 0.2,
    }  # fmt: skip
    job = config.parse(make(objective=more))
    made = objective(load.family(source.resolve_base(str(bases("sd")))).schedule(), job.objective)
    assert isinstance(made, Diffusion) and made.weight == P2(0.5) and made.error == PseudoHuber(0.2, "constant", smooth=True)
    assert made.density == Mode(-0.5) and (made.low, made.high) == (0.1, 0.8)
    how = made.noise
    assert (how.offset, how.pyramid, how.discount, how.perturbation) == (0.1, 2, 0.7, 0.2)


# A concept that is kept


def assembled(settings: dict[str, Any]) -> tuple[Run, Any]:
    runner = begun(config.parse(settings))
    return runner, runner.training


@pytest.mark.parametrize("method", [{}, {"kind": "loha"}, {"kind": "oft", "rank": 4}, {"kind": "dora"}, {"text_encoder": True}], ids=str)
def test_a_frozen_answer_is_the_bases(method: dict[str, Any], make: Make) -> None:
    own = {"data": {"trigger": "sks"}, "objective": {"preserve": "thing"}, "method": method}
    runner, training = assembled(make(**own))
    step = training.step.eval()
    _, plain = assembled(make(data={"trigger": "sks"}, run={"out": "unused"}, objective={"preserve": "thing"}, method={"rank": 4}))
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    with torch.no_grad():
        for p in training.trainable.values():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        caption = runner.prepared.data.pictures.captions[0]
        answers = [step.predict(x_t, t, [caption] * 2, {}, weights) for weights in ("live", "base", "live")]
        base = plain.step.eval().predict(x_t, t, [caption] * 2, {})
    assert torch.equal(answers[0], answers[2]) and not torch.allclose(answers[0], answers[1], atol=1e-3)
    assert torch.allclose(answers[1], base, atol=1e-6), "an untrained adapter changes nothing"
    assert all(p.requires_grad for p in training.trainable.values())


def test_keeping_a_concept_keeps_its_answers(make: Make, tmp_path: Path) -> None:
    """How far the answers to the class's caption and to none move, with and without; the subject's own move all the same."""
    moved: dict[str, dict[str, float]] = {}
    words = ["thing a disc", "sks a disc", ""]
    for name, more in (("plain", {}), ("kept", {"objective": {"preserve": "thing", "preserve_weight": 3.0}})):
        job = merge_settings(
            make(data={"trigger": "sks", "caption": "a disc", "caption_dropout": 0.3}, optim={"steps": 40}),
            {"run": {"out": str(tmp_path / name)}},
            more,
        )
        runner, training = assembled(job)
        x_t, t = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(50, 850, 100)
        captions = {"kept": "thing a disc", "own": "sks a disc", "none": None}
        training.step.cached |= {c: r for c, r in zip(words, texts_of(runner, words), strict=True)}

        def answers(training: Any = training, x_t: Tensor = x_t, t: Tensor = t, captions: Any = captions) -> dict[str, Tensor]:
            step = training.step.eval()
            with torch.no_grad():
                return {k: step.predict(x_t, t, [c] * 8, {}) for k, c in captions.items()}

        before = answers()
        runner.train()
        after = answers()
        moved[name] = {k: float((after[k] - before[k]).norm()) for k in captions}
    assert all(moved["kept"][k] < 0.5 * moved["plain"][k] for k in ("kept", "none")) and moved["kept"]["own"] > 0.05


def texts_of(runner: Run, captions: list[str]) -> Any:

    return runner.prepared.work.family.texts(captions)


# Zero terminal SNR

ZERO = {"objective": {"zero_terminal_snr": True}}


def test_zero_terminal_snr_is_in_every_table_and_in_the_file(make: Make, bases: Bases, tmp_path: Path) -> None:
    runner, _ = assembled(make("sd-v", **ZERO))
    learned = runner.prepared.work.objective
    assert isinstance(learned, Diffusion)
    alphas = learned.schedule.alphas_cumprod
    assert float(alphas[-1]) == 0 and float(alphas[0]) == pytest.approx(0.9991, abs=1e-3) and float(alphas[500]) > 0.01
    summary = train(config.parse(make("sd-v", **ZERO, run={"sample_prompt": ["x"], "sample_every": 2})))
    said = read(Path(summary["adapter"])).contract
    assert said and (said.zero_terminal_snr, said.timestep_spacing, said.guidance_rescale) == (True, "trailing", 0.7)
    plain = train(config.parse(make("sd-v", run={"out": str(tmp_path / "plain")})))
    ours = read(Path(plain["adapter"])).contract
    assert ours and (ours.zero_terminal_snr, ours.timestep_spacing, ours.guidance_rescale) == (False, None, 0.0)


def test_it_is_drawn_from_pure_noise_with_rescaled_guidance(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = train(config.parse(make("sd-v", **ZERO)))
    seen: list[tuple[Any, Any]] = []
    real = draw.draw

    def watched(family: Any, pipeline: Any, pairs: Any, *rest: Any) -> Any:
        seen.append((pipeline.scheduler, family.prompt(*pairs[0], 5.0)["guidance_rescale"]))
        return real(family, pipeline, pairs, *rest)

    monkeypatch.setattr(draw, "draw", watched)
    for sampler in (None, "ddim", "euler", "dpm++"):
        generate.generate(Request(["x"], adapters=[summary["adapter"]], out=tmp_path / "p", steps=3, sampler=sampler), lambda text: None)
    for scheduler, rescale in seen:
        assert scheduler.config.rescale_betas_zero_snr and scheduler.config.timestep_spacing == "trailing" and rescale == 0.7
        assert int(scheduler.timesteps[0]) == 999
    with pytest.raises(ConfigError, match="pndm: cannot begin at pure noise"):
        generate.generate(Request(["x"], adapters=[summary["adapter"]], out=tmp_path / "p", sampler="pndm"), lambda text: None)
    other = train(config.parse(make("sd-v", run={"out": str(tmp_path / "plain")})))
    with pytest.raises(ConfigError, match="some of the adapters were trained with zero terminal SNR"):
        generate.generate(Request(["x"], adapters=[summary["adapter"], other["adapter"]], out=tmp_path / "p"), lambda text: None)


def test_a_whole_model_says_it_in_its_schedule(make: Make) -> None:
    summary = train(config.parse(make("sd-v", **ZERO, method={"kind": "full"}, optim={"lr": 1e-4})))
    said = json.loads((Path(summary["model"]) / "scheduler" / "scheduler_config.json").read_text())
    assert said["rescale_betas_zero_snr"] is True and said["timestep_spacing"] == "trailing"
    again = load.family(source.resolve_base(summary["model"]))
    schedule = again.schedule()
    assert isinstance(schedule, Schedule) and float(schedule.alphas_cumprod[-1]) == 0 and again.source.guidance_rescale == 0.7


def test_class_pictures_are_drawn_by_the_bases_own_schedule(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    ensure = ClassPictures.ensure

    def watched(self: ClassPictures, *rest: Any) -> Any:
        seen.append(self.family.source.zero_snr)
        return ensure(self, *rest)

    monkeypatch.setattr(ClassPictures, "ensure", watched)
    subject = {"token": "sks", "class_word": "disc", "class_count": 2, "class_steps": 2}
    assembled(make("sd-v", **ZERO, subject=subject))
    assert seen == [False]


def test_a_base_that_draws_otherwise_is_written_with_a_sampler_that_can(make: Make, bases: Bases, tmp_path: Path) -> None:
    import shutil

    from diffusers import DiffusionPipeline

    base = tmp_path / "pndm"
    shutil.copytree(bases("sd-v"), base)
    for path in (base / "model_index.json", base / "scheduler" / "scheduler_config.json"):
        path.write_text(re.sub(r"(DDIM|DDPM|PNDM)Scheduler", "PNDMScheduler", path.read_text()))
    settings = make("sd-v", **ZERO, method={"kind": "full"}, optim={"lr": 1e-4})
    summary = train(config.parse(merge_settings(settings, {"model": {"base": str(base)}})))
    scheduler = DiffusionPipeline.from_pretrained(summary["model"]).scheduler
    assert type(scheduler).__name__ == "DDIMScheduler" and float(scheduler.alphas_cumprod[-1]) < 1e-6
    assert scheduler.config.timestep_spacing == "trailing"


@pytest.mark.parametrize("value", [[], {}, "yes", 1])
def test_a_header_that_lies_about_it_is_no_contract(value: Any) -> None:
    from dataclasses import asdict

    from finetune.adapters.contract import KEY, Contract

    good = Contract("b", None, "0", "f", "epsilon", 8, None, 1.0, 1, "ddim", 4, 4.0, 1)
    assert Contract.of({KEY: json.dumps(asdict(good))}) == good
    assert Contract.of({KEY: json.dumps(asdict(good) | {"zero_terminal_snr": value})}) is None


# The step


def test_a_step_asks_what_the_settings_say(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The captions that are kept, the noise that is mixed in, and one noise level for each part of [0, 1)."""
    from finetune.training import loop
    from finetune.training.step import Step

    objective_settings = {"preserve": "thing", "stratified": True, "noise_offset": 0.5, "input_perturbation": 0.3}
    _, training = assembled(make(data={"trigger": "sks", "caption_dropout": 0.0}, objective=objective_settings, optim={"batch": 4}))
    ((_, batch),) = loop.batches(training, 0)
    asked: list[tuple[Tensor, Tensor, list[str | None], str]] = []
    forward = Step.forward

    def watched(self: Any, what: Any, x_t: Tensor, t: Tensor, captions: Any, columns: Any, weights: Weights = "live") -> Tensor:
        asked.append((x_t, t, captions, weights))
        return forward(self, what, x_t, t, captions, columns, weights)

    monkeypatch.setattr(Step, "forward", watched)
    loop.gradient(training, 0)
    assert [a[3] for a in asked] == ["live", "base", "live"]
    assert asked[0][2] == batch.captions and asked[1][2] == asked[2][2] == [str(c).replace("sks", "thing") for c in batch.captions]
    assert sorted((asked[0][1] * 4 // 1000).tolist()) == [0, 1, 2, 3]
    x_0, drawn = batch.columns["x_0"], loop.draws(training, 0)(batch.slots)
    _, added = training.objective.inner.noise(drawn, x_0)
    signal, sigma = training.objective.inner.schedule.coefficients(asked[0][1], x_0)
    assert torch.allclose(asked[0][0], signal * x_0 + sigma * added, atol=1e-5)
    assert not torch.allclose(added, drawn.normal("noise", x_0.shape[1:]))
