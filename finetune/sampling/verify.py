"""Whether an adapter file works: loaded into the real pipeline, every key accounted for, its effect measured."""

import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune import randomness
from finetune.adapters import embedding
from finetune.adapters.read import AdapterFile, read
from finetune.data.inputs import INPAINT_MASK, MASKED
from finetune.errors import DataError
from finetune.families import load
from finetune.families.family import Family
from finetune.families.names.readers import WRONG
from finetune.families.spec import pixels_per_latent
from finetune.sampling import apply
from finetune.sampling.generate import Request, choose_base, sampler_for

LEVELS = (0.1, 0.5, 0.9)  # of the noise: where the effect is measured
PROMPT = "a picture"


@dataclass(frozen=True)
class Verified:
    modules: int  # in the file
    landed: int  # layers of the base that it changed, counted there
    effect: float  # |with - without| / |without| of the denoiser's answer
    text_effect: float | None  # the same of the encoded prompt; None where the file leaves the text encoders alone
    embeddings: int  # that came along, and have a place in the base's text encoders
    diffusers: float | None  # what diffusers' own reader makes of it, as a share of the change that it differs by; None: it cannot read it
    tolerance: float  # the share that rounding explains
    note: str  # why it cannot, or why it differs, as far as is known

    @property
    def differs(self) -> bool:
        """Whether diffusers' reader makes something else of the file than it says."""
        return self.diffusers is not None and self.diffusers > self.tolerance

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"differs": self.differs}

    def lines(self) -> list[str]:
        """What it says to a person."""
        out = [f"landed   {self.landed} of {self.modules} modules", f"effect   {self.effect:.3%} of the denoiser's answer, at strength 1"]
        if self.text_effect is not None:
            out.append(f"text     {self.text_effect:.3%} of the encoded prompt")
        if self.embeddings:
            out.append(f"tokens   {self.embeddings} came along")
        if self.diffusers is None:
            return [*out, f"diffusers {self.note}"]
        if self.differs:
            why = f": {self.note}" if self.note else ""
            return [*out, f"diffusers differs by {self.diffusers:.1%} of the change{why}"]
        return [*out, f"diffusers the same within {self.diffusers:.1e} of the change"]


def verify(path: Path, base: str | None) -> Verified:
    """Raises:
    DataError: the file is damaged, a module has no place in the base, or the adapter changes nothing.
    """
    adapter = read(path)
    where = choose_base(base, [adapter])
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None

    def fresh() -> Family:
        return load.family(where, device or "cpu")

    family = fresh()
    sampler_for(family, Request([], base=base), [adapter])
    modules = adapter.on(where.spec.denoiser)
    along = embedding.bundled(adapter)
    apply.to_words(fresh(), along)
    prompt = family.texts([PROMPT])[0]
    family.parts.free(*where.spec.text)
    other = fresh()
    landed = apply.to_text_encoders(other, [(adapter, 1.0)])
    text_effect = _relative(_flat(other.texts([PROMPT])[0]), _flat(prompt)) if landed else None
    del other  # one large network at a time in memory

    plain = _answers(family, fresh().parts.load(where.spec.denoiser), prompt)
    pipeline = fresh().pipeline()
    landed += apply.to_denoiser(family, pipeline, [(adapter, 1.0)])
    ours = _answers(family, getattr(pipeline, where.spec.denoiser), prompt)
    del pipeline
    effect = _relative(ours, plain)
    if effect == 0 and not text_effect:
        raise DataError(f"{path}: changes nothing on {where.id}", "its weights are zero, or it was never trained")
    theirs, note = _through_diffusers(fresh(), path, adapter)
    change = float((ours - plain).norm())
    difference = None
    if theirs is not None:
        difference = float((_answers(family, theirs, prompt) - ours).norm()) / max(change, SMALL)
        note = _why(adapter)
    return Verified(len(modules), landed, effect, text_effect, len(along), difference, _tolerance(adapter, ours, change), note)


SMALL = 1e-12
NOISE = 1e-5  # of the network's answer in fp32: what another order of sums makes


def _tolerance(adapter: AdapterFile, answer: Tensor, change: float) -> float:
    """The share of the change that rounding explains: of the file's number format, and of the network's own arithmetic."""
    rounding = 0.0
    for weights in adapter.modules.values():
        for tensor in weights.tensors.values():
            rounding = max(rounding, torch.finfo(tensor.dtype).eps)
    return float(4 * rounding + NOISE * float(answer.norm()) / max(change, SMALL))


def _why(adapter: AdapterFile) -> str:
    """Why diffusers' reader may make something else of it, as far as is known."""
    known = [r for r in adapter.readings if r.tool == "diffusers" and r.how == WRONG]
    norms = {w.kind for w in adapter.modules.values()} == {"dora"}
    alphas = {w.alpha for w in adapter.modules.values()}
    reasons = []
    if known:
        reasons.append(known[0].says)
    elif norms and adapter.layout == "kohya":
        reasons.append("it leaves DoRA's norms out in this layout")
    if adapter.layout == "kohya" and len(alphas) > 1:
        reasons.append("its modules' alphas differ, and it takes one for all of a file; `ft adapter convert` folds them in")
    return "; ".join(reasons)


def _flat(text: dict[str, Tensor]) -> Tensor:
    return torch.cat([v.float().flatten() for v in text.values()])


@torch.no_grad()
def _answers(family: Family, net: nn.Module, prompt: dict[str, Tensor]) -> Tensor:
    """What the denoiser answers to fixed noise at fixed levels and a prompt."""
    side = min(family.resolution, 32 * family.factor)
    vae = family.source.config("vae")
    latent = side // pixels_per_latent(family.source)
    x_t = torch.randn(1, vae["latent_channels"], latent, latent, generator=randomness.generator("verify")).to(family.device)
    told = {"crop": torch.tensor([[side, side, 0, 0, side, side]])}
    told |= {INPAINT_MASK: torch.ones(1, 1, latent, latent), MASKED: torch.zeros(x_t.shape)}  # all of it is repainted
    cond = family.condition([prompt], told)
    schedule, out = family.schedule(), []
    for level in LEVELS:
        t = schedule.timestep(level).to(family.device)
        out.append(family.predict({"denoiser": net}, x_t, t, cond).float().flatten())
    return torch.cat(out).cpu()


def _through_diffusers(family: Family, path: Path, adapter: AdapterFile) -> tuple[nn.Module | None, str]:
    """The denoiser with the file as diffusers reads it, or why it cannot."""
    if path.is_dir():
        return None, "does not read folders of PEFT's"
    if any(not w.peft for w in adapter.modules.values()):
        return None, "reads LoRA and DoRA alone, and no biases"
    pipeline = family.pipeline()
    if any(part.startswith("text_encoder") for part, _ in adapter.modules):
        pipeline.register_modules(**{part: family.parts.load(part) for part in family.spec.text})
    logging.getLogger("diffusers.loaders").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="theirs")
    except Exception as e:  # its converters raise whatever a key that they do not expect leads to
        return None, f"cannot read it ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''})"
    net: nn.Module = getattr(pipeline, family.spec.denoiser)
    return net, ""


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-12))
