"""Every family against the published formulas, and against what its own pipeline does at inference."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from parts import Bases, family
from torch import Tensor, nn

from finetune import config
from finetune.data.batch import Batch
from finetune.draws import StepDraws
from finetune.errors import ConfigError
from finetune.families import flux, load, patches, source
from finetune.objectives.diffusion import Schedule
from finetune.objectives.flow import Flow
from finetune.training import loop
from finetune.training.run import begun

SIDE, PROMPT = 16, "red disc"
each_family = pytest.mark.parametrize("name", list(tiny.PIPELINES))


# One step, against a reference written from the papers and from what each network's authors feed it.


def discrete_alphas() -> Tensor:
    """Stable Diffusion's schedule: betas that are linear in their square roots (Rombach et al. 2022, appendix)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, 0)


def reference_loss(name: str, pipe: Any, net: nn.Module, batch: Batch, drawn: StepDraws) -> Tensor:
    out: Tensor
    x = batch.columns["x_0"]
    e, u = drawn.normal("noise", x.shape[1:]), drawn.uniform("timestep")
    if name == "sd3":
        hidden, _, pooled, _ = pipe.encode_prompt(PROMPT, None, None, num_images_per_prompt=2, max_sequence_length=tiny.WINDOW)
        u = torch.special.expit(torch.special.ndtri(u))  # the logit-normal density (Esser et al. 2024, arXiv:2403.03206, equation 19)
        s = (3 * u / (1 + 2 * u)).float()  # and the shift of equation 23
        x_t = (1 - s.view(-1, 1, 1, 1)) * x + s.view(-1, 1, 1, 1) * e
        out = net(x_t, hidden, pooled, 1000 * s, return_dict=False)[0]
        return ((out - (e - x)) ** 2).mean((1, 2, 3)).mean()
    if name.startswith("flux"):
        hidden, pooled, _ = pipe.encode_prompt(PROMPT, None, num_images_per_prompt=2, max_sequence_length=tiny.WINDOW)
        normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
        s = torch.sigmoid(normal.icdf(u)).float()
        x_t = (1 - s.view(-1, 1, 1, 1)) * x + s.view(-1, 1, 1, 1) * e
        b, c, h, w = x.shape
        out = net(
            hidden_states=FluxPipeline._pack_latents(x_t, b, c, h, w), timestep=s, encoder_hidden_states=hidden, pooled_projections=pooled,
            guidance=torch.ones(b) if name == "flux" else None, txt_ids=torch.zeros(tiny.WINDOW, 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32), return_dict=False,
        )[0]  # fmt: skip
        out = FluxPipeline._unpack_latents(out, SIDE, SIDE, 2)
        return ((out - (e - x)) ** 2).mean((1, 2, 3)).mean()
    t = (u * 1000).long()
    a = discrete_alphas()[t].view(-1, 1, 1, 1)
    x_t, target = a.sqrt() * x + (1 - a).sqrt() * e, (a.sqrt() * e - (1 - a).sqrt() * x) if name == "sd-v" else e
    if name == "sdxl":
        hidden, _, pooled, _ = pipe.encode_prompt(PROMPT, num_images_per_prompt=2, do_classifier_free_guidance=False)
        ids = torch.tensor([[20.0, 24, 0, 2, 16, 16]]).repeat(2, 1)  # pictures of 24x20, scaled to 19x16, centre-cropped
        out = net(x_t, t, encoder_hidden_states=hidden, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}, return_dict=False)[0]
    else:
        hidden, _ = pipe.encode_prompt(PROMPT, "cpu", 2, do_classifier_free_guidance=False)
        out = net(x_t, t, encoder_hidden_states=hidden, return_dict=False)[0]
    return ((out - target) ** 2).mean((1, 2, 3)).mean()


@each_family
def test_a_step_is_the_published_formula(name: str, bases: Bases, settings: Callable[..., dict[str, Any]]) -> None:
    job = settings(
        model={"base": str(bases(name))}, optim={"batch": 2},
        data={"resolution": SIDE, "buckets": False, "caption": PROMPT, "caption_dropout": 0}, method={"targets": "all-linear"},
    )  # fmt: skip
    runner = begun(config.parse(job))
    net = runner.prepared.work.family.parts.load(runner.prepared.work.family.spec.denoiser)
    training = runner.training
    g = torch.Generator().manual_seed(3)
    for p in training.trainable.values():
        p.data = 0.2 * torch.randn(p.shape, generator=g)
    ((_, batch),) = loop.batches(training, 0)
    ours = loop.loss_sum(training, batch, 0) / batch.weights.sum()
    ours.backward()
    gradients = [p.grad.clone() for p in training.trainable.values() if p.grad is not None]
    assert len(gradients) == len(training.trainable)
    net.zero_grad()
    pipe = DiffusionPipeline.from_pretrained(bases(name))
    expected = reference_loss(name, pipe, net, batch, loop.draws(training, 0)(batch.slots))
    expected.backward()
    assert abs(ours - expected) < 1e-5 * expected
    for (n, p), mine in zip(training.trainable.items(), gradients, strict=True):
        assert p.grad is not None and (mine - p.grad).norm() <= 1e-5 * p.grad.norm() + 1e-8, n


# What the pipeline feeds its denoiser at inference, against the training path for the same (x_t, t, prompt)


class Recorder:
    """Every call of a network: its arguments by name, and its output."""

    def __init__(self, net: nn.Module) -> None:
        self.calls: list[tuple[dict[str, Any], Tensor]] = []
        names = ("sample", "timestep") if "unet" in type(net).__name__.lower() else ()

        def note(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            self.calls.append((dict(zip(names, args, strict=False)) | kwargs, out[0]))

        net.register_forward_hook(note, with_kwargs=True)


def tensors(arguments: dict[str, Any]) -> dict[str, Tensor]:
    flat = {k: v for k, v in arguments.items() if isinstance(v, Tensor)}
    return flat | {k: v for k, v in (arguments.get("added_cond_kwargs") or {}).items()}


@each_family
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_training_feeds_the_denoiser_what_inference_feeds_it(name: str, precision: torch.dtype, bases: Bases) -> None:
    ours = load.family(source.resolve_base(str(bases(name))), dtype=precision)
    half = precision != torch.float32
    pipe = ours.pipeline() if half else DiffusionPipeline.from_pretrained(bases(name))  # which runs all its parts in one precision
    pipe.set_progress_bar_config(disable=True)
    net = getattr(pipe, ours.spec.denoiser)
    seen = Recorder(net)
    guided = not name.startswith("flux")
    scale = 4.0 if guided else flux.TRAINING_GUIDANCE
    own = {"max_sequence_length": tiny.WINDOW} if ours.schedule().prediction_type == "flow" else {}  # T5's
    encoded = ours.prompt(ours.texts([PROMPT])[0], ours.unconditional(ours.texts([""])[0]), scale)
    pipe(
        **encoded if half else {"prompt": PROMPT, "guidance_scale": scale} | own, num_inference_steps=3, height=SIDE, width=SIDE,
        output_type="latent", generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    inference = list(seen.calls)
    assert len(inference) == 3
    rows = [ours.unconditional(ours.texts([""])[0]), ours.texts([PROMPT])[0]] if guided else [ours.texts([PROMPT])[0]]
    crops = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * len(rows))
    for arguments, output in inference:
        x_t = arguments["sample"] if "sample" in arguments else arguments["hidden_states"]
        x_t = patches.unpack(x_t, SIDE // 2, SIDE // 2) if x_t.ndim == 3 else x_t
        t = arguments["timestep"].expand(len(rows))
        t = t.double() / 1000 if name == "sd3" else t  # sigma, as FLUX.1 is told it
        seen.calls.clear()
        predicted = ours.predict({"denoiser": net}, x_t, t, ours.condition(rows, {"crop": crops}))
        (mine, _) = seen.calls[0]
        theirs = tensors(arguments)
        assert theirs.keys() == tensors(mine).keys()
        for key, value in tensors(mine).items():
            assert value.dtype == theirs[key].dtype or key in ("timestep", "txt_ids", "img_ids"), key  # whole numbers
            assert (value.float() - theirs[key].expand(value.shape).float()).abs().max() < 1e-5, key
        meant = output if guided else patches.unpack(output, SIDE // 2, SIDE // 2)
        assert (predicted.float() - meant.float()).abs().max() < 1e-5


@each_family
@torch.no_grad()
def test_latents_round_trip_as_the_pipeline_decodes_them(name: str, bases: Bases) -> None:
    ours, pipe = family(bases(name)), DiffusionPipeline.from_pretrained(bases(name))
    pixels = torch.rand(2, 3, SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, _ = ours.encode(pixels)
    config = pipe.vae.config
    plain = pipe.vae.encode(pixels).latent_dist.mean
    assert (mean - (plain - (config.shift_factor or 0)) * config.scaling_factor).abs().max() < 1e-6
    packed = patches.pack(mean) if name.startswith("flux") else mean
    assert (ours.decode(packed, SIDE, 2 * SIDE) - pipe.vae.decode(plain).sample.clamp(-1, 1)).abs().max() < 1e-5


def test_packing_is_the_pipelines() -> None:
    x = torch.randn(2, 4, 6, 10)
    packed = FluxPipeline._pack_latents(x, 2, 4, 6, 10)
    assert torch.equal(patches.pack(x), packed) and torch.equal(patches.unpack(packed, 6, 10), x)
    assert torch.equal(patches.positions(6, 10, "cpu"), FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32))


# The bases' own configs decide


def test_an_euler_config_trains_with_ddpm_noise(bases: Bases) -> None:
    schedule = family(bases("sdxl")).schedule()
    assert isinstance(schedule, Schedule) and torch.allclose(schedule.alphas_cumprod, discrete_alphas())


def test_dynamic_shifting_is_for_sampling_alone(bases: Bases) -> None:
    schedule = family(bases("flux")).schedule()
    assert isinstance(schedule, Flow) and schedule.shift == 1.0  # though its config says 3


def test_distilled_bases_are_named_before_training(bases: Bases, train: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    train(model={"base": str(bases("flux-schnell"))}, data={"resolution": SIDE}, optim={"steps": 1, "lr": 1e-2})
    said = capsys.readouterr().err
    assert "distilled for four steps" in said and "flux-dev" in said


def test_settings_of_another_objective_are_refused(bases: Bases, train: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="weighting min-snr: this base learns by flow matching"):
        train(model={"base": str(bases("flux"))}, data={"resolution": SIDE}, objective={"weighting": "min-snr"})
    with pytest.raises(ConfigError, match="resolution_shift: is for flow matching"):
        train(objective={"resolution_shift": True})
    with pytest.raises(ConfigError, match="zero_terminal_snr: this base predicts epsilon"):
        train(objective={"zero_terminal_snr": True})
