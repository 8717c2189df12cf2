"""The settings of a run. The description on each field is its help text, in flags, recipes and docs alike."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from finetune.config.data import Data
from finetune.config.section import Positive, Section
from finetune.methods.rows import INITS, OPTIONS, ROWS

if TYPE_CHECKING:
    Kind = str
    Init = str
else:
    Kind, Init = Literal[(*ROWS, "full", "none")], Literal[tuple(INITS)]
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Word = Annotated[str, Field(pattern=r"^[^\s,]{1,60}$")]


class Model(Section):
    base: str = Field(
        "tiny", description="short name (see `ft models`), Hub id with optional @revision, diffusers folder, or .safetensors file"
    )
    variant: str | None = Field(None, description="weight variant of a Hub base, such as fp16")
    allow_pickle: bool = Field(
        False, description="open .ckpt and .bin weights too, which are pickles: only tensors are taken from them, nothing is run"
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="what a single-file base predicts, where the file does not say (Stable Diffusion 2)"
    )


class Subject(Section):
    """DreamBooth (Ruiz et al. 2023, arXiv:2208.12242): a rare token names one subject, pictures of its class keep the class."""

    token: Word | None = Field(None, description="rare word for the subject, such as sks")
    class_word: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(None, description="the subject's class, such as dog")
    prior_weight: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = Field(
        1.0, description="weight of a class picture's loss, prior preservation; 0 is without"
    )
    class_data: Path | None = Field(None, description="folder of class pictures, topped up with the base's own (all are the base's own)")
    class_count: Annotated[int, Field(ge=0, le=100_000)] = Field(100, description="class pictures that there must be at least")
    class_steps: Positive | None = Field(None, description="sampling steps of class pictures (the family's)")
    class_guidance: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="guidance of class pictures (the base's)")
    class_batch: Positive | None = Field(None, description="class pictures drawn at once (as many as fill 1024x1024 pixels, at most 16)")

    @property
    def prior(self) -> bool:
        return self.class_word is not None and self.prior_weight > 0


class Method(Section):
    kind: Kind = Field("lora", description="what trains in the denoiser: an adapter, all its weights, or nothing (new tokens alone)")
    rank: Annotated[int, Field(ge=1, le=1024)] = Field(8, description="rank of the adapter's matrices; of oft, the size of a block")
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(None, description="strength is alpha / rank (the rank)")
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=1024)]] = Field(
        {}, description="ranks of layers, by regular expressions that are searched in their names"
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field({}, description="alphas of layers, likewise")
    init: Init = Field("default", description="how LoRA's matrices begin; pissa and olora begin with a part of the base's weights")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout of the adapter's input; of loha and lokr of rows of the change, of oft of blocks"
    )
    factor: Annotated[int, Field(ge=-1)] = Field(-1, description="size of lokr's small matrix, where it divides the layer's (the root)")
    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="largest norm of a layer's change of weight; larger ones are scaled down after each step (off)"
    )
    targets: str = Field(
        "attention",
        description="attention, attention+ff, all-linear, all, endings of names with commas, or re: and a regular expression",
    )
    start: Path | None = Field(None, description="adapter file to go on from, with its layers and ranks")
    text_encoder: bool = Field(False, description="train the text encoder too, as the denoiser is trained; CLIP only")
    text_encoder_lr: Rate | None = Field(None, description="peak learning rate of the text encoder (a fifth of the denoiser's)")
    new_tokens: tuple[Word, ...] = Field((), description="new token to learn an embedding for; may be given several times")
    vectors: Annotated[int, Field(ge=1, le=64)] = Field(1, description="embedding vectors of each new token")
    init_word: str | None = Field(None, description="word whose embedding a new token starts from (random)")
    token_lr: Rate | None = Field(None, description="peak learning rate of new tokens, where an adapter trains too (5e-3)")
    token_until: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        1.0, description="share of the steps after which new tokens stay as they are"
    )

    @property
    def adapts(self) -> bool:
        """Whether an adapter trains."""
        return self.kind in ROWS

    @property
    def live(self) -> bool:
        """Whether the text encoders take part in every step."""
        return self.text_encoder or bool(self.new_tokens)


class Objective(Section):
    weighting: Literal["uniform", "min-snr", "soft-min-snr", "debiased", "p2"] = Field(
        "uniform", description="how much each timestep counts, by its signal-to-noise ratio"
    )
    gamma: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="gamma of the weighting (5 for min-snr and soft-min-snr, 1 for p2)"
    )
    loss: Literal["l2", "l1", "huber", "smooth-l1"] = Field("l2", description="what an error costs")
    huber_c: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="where huber and smooth-l1 turn from square to absolute")
    huber_schedule: Literal["constant", "exponential", "snr"] = Field(
        "snr", description="how that point moves with the noise: from 1 where there is none to huber_c, or not at all"
    )
    density: Literal["uniform", "logit-normal", "mode", "cosmap"] | None = Field(
        None, description="how often each noise level is drawn (logit-normal for flow matching, else uniform)"
    )
    density_mean: Annotated[float, Field(allow_inf_nan=False)] = Field(0.0, description="of logit-normal; below 0 is towards the picture")
    density_deviation: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(1.0, description="of logit-normal")
    density_scale: Annotated[float, Field(ge=-1, le=1.75)] = Field(1.29, description="of mode; above 0 draws the middle more")
    t_min: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="lowest noise level, as a share of all, after any shift")
    t_max: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="highest noise level, as a share of all, after any shift")
    stratified: bool = Field(False, description="spread the noise levels of a step evenly over its pictures: less variance")
    resolution_shift: bool = Field(False, description="flow matching: more noise for larger pictures, as in FLUX.1's sampling")
    zero_terminal_snr: bool = Field(
        False, description="pure noise at the last timestep (Lin et al. 2023, arXiv:2305.08891), for bases that predict v"
    )
    noise_offset: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="random constant in each channel's noise, usually 0.05")
    pyramid_levels: Annotated[int, Field(ge=0, le=10)] = Field(0, description="coarser grids of noise that are added")
    pyramid_discount: Annotated[float, Field(gt=0, le=1)] = Field(0.8, description="of each coarser grid against the one before")
    input_perturbation: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="noise that the network sees beyond what it is to predict, usually 0.1"
    )
    preserve: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="what the trigger stands for, such as dog: captions that say it instead keep the base's own answer"
    )
    preserve_weight: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = Field(1.0, description="weight of that part of the loss")

    def contradictions(self) -> list[tuple[bool, str]]:
        fields = type(self).model_fields
        given = {name for name in fields if getattr(self, name) != fields[name].default}

        def without(name: str, needs: str, present: bool) -> tuple[bool, str]:
            return name in given and not present, f"objective.{name}: is for {needs}"

        return [
            without("gamma", "objective.weighting min-snr, soft-min-snr or p2", self.weighting in ("min-snr", "soft-min-snr", "p2")),
            without("huber_c", "objective.loss huber or smooth-l1", self.loss in ("huber", "smooth-l1")),
            without("huber_schedule", "objective.loss huber or smooth-l1", self.loss in ("huber", "smooth-l1")),
            without("density_mean", "objective.density logit-normal", self.density == "logit-normal"),
            without("density_deviation", "objective.density logit-normal", self.density == "logit-normal"),
            without("density_scale", "objective.density mode", self.density == "mode"),
            without("pyramid_discount", "objective.pyramid_levels", self.pyramid_levels > 0),
            without("preserve_weight", "objective.preserve", self.preserve is not None),
            (self.t_min >= self.t_max, f"objective.t_min {self.t_min}: must be below objective.t_max {self.t_max}"),
        ]


ONE_RATE = frozenset({"prodigy"})  # optimizers that find one rate, for all that trains


class Optim(Section):
    steps: Annotated[int, Field(ge=1)] = Field(500, description="optimizer steps")
    batch: Positive = Field(4, description="pictures per process and micro-batch")
    accumulate: Positive = Field(1, description="micro-batches per optimizer step")
    lr: Rate = Field(2e-4, description="peak learning rate (1e-5 for all weights, 5e-3 for new tokens alone)")
    optimizer: Literal["adamw", "adamw8bit", "paged-adamw8bit", "adafactor", "lion", "prodigy", "schedule-free"] = Field(
        "adamw", description="optimizer"
    )
    masters: Literal["fp32", "bf16"] = Field(
        "fp32", description="number format of weights that train; bf16, with stochastic rounding, is for all weights with adamw"
    )
    schedule: Literal["constant", "linear", "cosine", "cosine-restarts", "polynomial", "wsd"] = Field(
        "constant", description="shape of the learning rate after warmup"
    )
    cycles: Annotated[int, Field(ge=1)] = Field(2, description="of cosine-restarts")
    power: Annotated[float, Field(gt=0, le=10)] = Field(2.0, description="of polynomial")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="share of the steps in which wsd goes down to 0")
    warmup: Annotated[int, Field(ge=0)] = Field(0, description="optimizer steps of linear warmup")
    lr_pattern: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        {}, description="factors on the rate of parameters, by regular expressions that are searched in their names"
    )
    lora_plus: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = Field(
        1.0, description="rate of LoRA's up matrices as a multiple of the others', LoRA+ (Hayou et al. 2024, arXiv:2402.12354)"
    )
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.01, description="decoupled weight decay")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="moment decays (0.9 and 0.99 for lion)"
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="gradients are clipped to this norm, once a step")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay of averaged weights, which are then what is written (off)"
    )
    ema_posthoc: bool = Field(
        False, description="keep averages from which `ft adapter average` makes one of any length after the run, at each checkpoint"
    )

    @property
    def one_rate(self) -> bool:
        """Whether the optimizer finds one rate for all that trains."""
        return self.optimizer in ONE_RATE


class Run(Section):
    out: Path | None = Field(None, description="output folder (runs/<name>)")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(
        "lora", description="name of the adapter file and of the run"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="everything random is a function of it")
    precision: Literal["auto", "no", "fp16", "bf16"] = Field(
        "auto", description="mixed precision; auto is bf16 or fp16 on an accelerator, else no"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    checkpoint_every: Positive = Field(100, description="steps between checkpoints")
    keep: Positive = Field(2, description="newest checkpoints that are kept")
    log_every: Positive = Field(10, description="steps between log lines")
    holdout_every: Positive = Field(100, description="steps between held-out losses")
    sample_prompt: tuple[str, ...] = Field((), description="prompt to draw during training; may be given several times")
    sample_every: Positive = Field(250, description="steps between samples")
    format: Literal["auto", "kohya", "diffusers", "peft", "single"] = Field(
        "auto", description="layout of the adapter file (the family's own); of all weights a diffusers folder or a single file"
    )
    save_dtype: Literal["fp16", "bf16", "fp32"] = Field("fp16", description="number format of the adapter file")
    processes: Positive | None = Field(None, description="number of processes that must take part, asserted at the start")
    tensorboard: bool = Field(False, description="also log to <out>/tensorboard")

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / self.name


def _nested(a: Path, b: Path) -> bool:
    """Whether one of two folders lies in the other."""
    a, b = a.expanduser().resolve(), b.expanduser().resolve()
    return a.is_relative_to(b) or b.is_relative_to(a)


# Where none is given, as multiples of the usual rate: Lion's steps are all of one size (Chen et al. 2023, arXiv:2302.06675: 3 to 10 times
# less than AdamW's).
FACTORS = {"lion": 0.2}
RATES = {**dict.fromkeys(ROWS, 2e-4), "full": 1e-5, "none": 5e-3}  # where none is given


def usual_rate(kind: str, optimizer: str) -> float:
    """The learning rate of what trains, where none is given; of Prodigy, a multiple of the one that it finds."""
    return 1.0 if optimizer in ONE_RATE else RATES.get(kind, RATES["lora"]) * FACTORS.get(optimizer, 1.0)


class Job(Section):
    """A whole run. Sections: model, data, subject, method, objective, optim, run."""

    model: Model = Field(default_factory=Model)
    data: Data
    subject: Subject = Field(default_factory=Subject)
    method: Method = Field(default_factory=Method)
    objective: Objective = Field(default_factory=Objective)
    optim: Optim = Field(default_factory=Optim)
    run: Run = Field(default_factory=Run)

    @model_validator(mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        """The learning rate and moment decays that suit what trains and how, where none are given."""
        sections = value if isinstance(value, dict) else {}
        method, optim = sections.get("method", {}), sections.get("optim", {})
        if not isinstance(method, dict) or not isinstance(optim, dict):
            return value
        kind, name = str(method.get("kind", "lora")), str(optim.get("optimizer", "adamw"))
        own: dict[str, Any] = {"lr": usual_rate(kind, name)}
        own |= {"betas": (0.9, 0.99)} if name == "lion" else {}
        given = {k: v for k, v in optim.items() if v is not None or k not in own}
        return {**sections, "optim": {**own, **given}}

    @model_validator(mode="after")
    def _together(self) -> "Job":
        wrong = [text for holds, text in self._contradictions() if holds]
        if wrong:
            raise ValueError("\n       ".join(wrong))
        return self

    def _contradictions(self) -> list[tuple[bool, str]]:
        s, m, o, d = self.subject, self.method, self.optim, self.data
        tokens = m.new_tokens
        return [
            (o.warmup > o.steps, f"optim.warmup {o.warmup} is longer than optim.steps {o.steps}"),
            (bool(s.token) != bool(s.class_word), "--token and --class: give both, as in --token sks --class dog"),
            (bool(s.token and d.trigger), "data.trigger: --token and --class are the trigger; leave it out"),
            (
                s.prior and s.class_count == 0 and s.class_data is None,
                "--class-count 0: prior preservation needs class pictures; give --class-data, or --prior-weight 0 to go without",
            ),
            (m.kind == "none" and not tokens, "nothing would train without a new token, as in --token '<owl>'"),
            (m.kind == "none" and m.text_encoder, "method.text_encoder: new tokens train alone with method.kind none; leave it out"),
            (m.kind == "full" and bool(tokens), "method.new_tokens: train with an adapter or alone, not with all weights"),
            (len({t.lower() for t in tokens}) < len(tokens), f"method.new_tokens {', '.join(tokens)}: one stands twice"),
            (m.init_word is not None and not tokens, f"--init-word {m.init_word}: there is no new token to start from it"),
            (
                m.kind == "full" and self.run.format in ("kohya", "peft"),
                f"--format {self.run.format}: is for adapters",
            ),
            (m.kind != "full" and self.run.format == "single", "--format single: is for all weights"),
            *self._optimizing(),
            *self._useless(),
            *self.objective.contradictions(),
            *self._preserving(),
            (
                m.token_lr is not None and (m.kind == "none" or not tokens),
                "method.token_lr: is for new tokens beside an adapter",
            ),
            (m.text_encoder_lr is not None and not m.text_encoder, "--text-encoder-lr: the text encoder does not train"),
            (m.vectors > 1 and not tokens, "--vectors: there is no new token"),
            (
                s.class_data is not None and any(_nested(s.class_data, Path(p.path)) for p in d.places),
                f"--class-data {s.class_data}: lies in --data {d.path or ''}, or around it; pictures of the class are not the subject's",
            ),
        ]

    def _optimizing(self) -> list[tuple[bool, str]]:
        o, m, r = self.optim, self.method, self.run
        free = o.optimizer == "schedule-free"

        def unused(name: str, schedule: str) -> tuple[bool, str]:
            given = getattr(o, name) != Optim.model_fields[name].default
            return given and o.schedule != schedule, f"optim.{name}: is for --schedule {schedule}"

        return [
            (o.schedule == "cosine-restarts" and o.cycles > o.steps - o.warmup, f"optim.cycles {o.cycles}: more than there are steps"),
            unused("cycles", "cosine-restarts"),
            unused("power", "polynomial"),
            unused("decay", "wsd"),
            (free and o.betas[0] == 0, "optim.betas: --optimizer schedule-free averages with the first, which must be above 0"),
            (
                o.optimizer == "adafactor" and o.betas != Optim.model_fields["betas"].default,
                "optim.betas: --optimizer adafactor has none",
            ),
            (free and o.schedule != "constant", f"--schedule {o.schedule}: --optimizer schedule-free is in the place of one"),
            (free and o.ema_posthoc, "optim.ema_posthoc: --optimizer schedule-free averages by itself"),
            (free and o.ema is not None, "--ema: --optimizer schedule-free averages by itself"),
            (free and bool(m.new_tokens), "--optimizer schedule-free: new tokens' norms are kept by moving them, which it does not know"),
            (free and m.max_norm is not None, "method.max_norm: moves weights, which --optimizer schedule-free does not know"),
            (o.masters == "bf16" and m.kind != "full", "optim.masters bf16: is for all weights; what an adapter trains is small"),
            (o.masters == "bf16" and o.optimizer != "adamw", f"optim.masters bf16: is for adamw, not {o.optimizer}"),
            (o.masters == "bf16" and r.precision not in ("auto", "bf16"), f"optim.masters bf16: with --precision bf16, not {r.precision}"),
        ]

    def _preserving(self) -> list[tuple[bool, str]]:
        word, m, trigger = self.objective.preserve, self.method, self.trigger
        if word is None:
            return []
        return [
            (not m.adapts, "objective.preserve: needs the base beside what is trained, which only an adapter leaves as it was"),
            (m.init in ("pissa", "olora"), f"objective.preserve: method.init {m.init} takes a part out of the base, which is needed whole"),
            (trigger is None, "objective.preserve: there is no trigger that it could stand in the place of; give --trigger"),
            (trigger is not None and spoken(trigger).search(word) is not None, f"objective.preserve {word}: holds the trigger {trigger}"),
        ]

    def _useless(self) -> list[tuple[bool, str]]:
        """Settings that mean nothing for what trains, or come from the file that --from names."""
        m, o = self.method, self.optim
        takes = ROWS[m.kind].takes | {"rank", "targets"} if m.adapts else frozenset()
        out = []
        for name in ("rank", "targets", *sorted(OPTIONS)):
            section: Section = o if name == "lora_plus" else m
            given = getattr(section, name) != type(section).model_fields[name].default
            where = f"{'optim' if section is o else 'method'}.{name}"
            able = [kind for kind, row in ROWS.items() if name in row.takes | {"rank", "targets"}]
            out.append((given and name not in takes, f"{where}: is for --adapter {', '.join(able)}"))
            if name in ("rank", "targets", "alpha", "rank_pattern", "alpha_pattern", "init"):
                out.append((given and m.start is not None, f"{where}: is that of {m.start}; leave it out"))
        away = m.init in ("pissa", "olora") and m.max_norm is not None
        return [*out, (away, f"method.max_norm: bounds a change that begins at 0, and method.init {m.init} begins elsewhere")]

    @property
    def command(self) -> str:
        """The command that such a run is made with."""
        return "textual-inversion" if self.method.kind == "none" else "dreambooth" if self.subject.token else "lora"

    @property
    def trigger(self) -> str | None:
        """What summons what was learned, and stands in front of every caption."""
        if self.subject.token:
            return f"{self.subject.token} {self.subject.class_word}"
        return self.data.trigger or (" ".join(self.method.new_tokens) or None)

    def preserved(self, caption: str) -> str:
        """A caption with what the trigger stands for in the trigger's place."""
        word, trigger = self.objective.preserve, self.trigger
        return caption if word is None or trigger is None else spoken(trigger).sub(lambda _: word, caption)


def spoken(word: str) -> re.Pattern[str]:
    """Where a word stands in a text, and not as a part of another."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")


# What may differ when a run goes on: none of it changes what the steps so far have learned.
FREE_SETTINGS = {
    "optim.steps", "run.out", "run.name", "run.checkpoint_every", "run.keep", "run.log_every", "run.holdout_every", "run.sample_prompt",
    "run.sample_every", "run.format", "run.save_dtype", "run.tensorboard", "run.processes",
}  # fmt: skip
