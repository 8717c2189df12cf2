"""The settings of a run. The description on each field is its help text, in flags, recipes and docs alike."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from finetune import files
from finetune.config.adapter_types import OPTIONS, ROWS
from finetune.config.data import Data
from finetune.config.method import EMBEDDED, Method, trained, usual_rate
from finetune.config.objective import Objective
from finetune.config.optim import Optim
from finetune.config.section import Positive, Said, Section, Word
from finetune.errors import NEXT
from finetune.text import AUTO, says


class Model(Section):
    """The base that is trained, and how its files are read."""

    base: str = Field(
        EMBEDDED, description="short name (see `ft models`), Hub id with optional @revision, diffusers folder, or .safetensors file"
    )
    variant: str | None = Field(None, description="weight variant of a Hub base, such as fp16")
    allow_pickle: bool = Field(
        False, description="open .ckpt and .bin weights too, which are pickles: only tensors are taken from them, nothing is run"
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="what a single-file base predicts, where the file does not say (Stable Diffusion 2)"
    )
    vae: Path | None = Field(
        None, description="another autoencoder for the base, such as what `ft vae` wrote: a file, a folder of diffusers, or its run"
    )


class Subject(Section):
    """DreamBooth (Ruiz et al. 2023, arXiv:2208.12242): a rare token names one subject, pictures of its class keep the class."""

    token: Word | None = Field(None, description="rare word for the subject, such as sks")
    class_word: Annotated[Said, Field(min_length=1, max_length=200)] | None = Field(None, description="the subject's class, such as dog")
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
        """Whether class pictures are trained on beside the subject's."""
        return self.class_word is not None and self.prior_weight > 0


class Run(Section):
    """What a run writes, how often, in which formats, and on how many processes."""

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
    keep_finished: bool = Field(
        False, description="keep the checkpoints of all weights, which are large, when the run is finished; those of adapters stay"
    )
    log_every: Positive = Field(10, description="steps between log lines")
    holdout_every: Positive = Field(100, description="steps between held-out losses")
    sample_prompt: tuple[str, ...] = Field(
        (), description="prompt to draw before, during and after training; may be given several times; auto chooses a few"
    )
    sample_every: Positive = Field(250, description="steps between samples")
    format: Literal["auto", "kohya", "diffusers", "peft", "full", "svd", "single"] = Field(
        "auto",
        description="layout of the adapter file (the family's own); full are whole differences, svd a LoRA of --rank; of all weights "
        "a diffusers folder or a single file",
    )
    save_dtype: Literal["fp16", "bf16", "fp32"] = Field("fp16", description="number format of the adapter file")
    publish_tags: bool = Field(
        False, description="count the captions' tags in the files' headers, where interfaces show them and everybody can read them"
    )
    processes: Positive | None = Field(None, description="number of processes that must take part, asserted at the start")
    tensorboard: bool = Field(False, description="also log to <out>/tensorboard")

    @field_validator("sample_prompt", mode="before")
    @classmethod
    def _sample_prompt(cls, value: Any) -> Any:
        return (AUTO,) if value == AUTO else value

    @property
    def automatic(self) -> bool:
        """Whether the prompts to draw are still to be chosen."""
        return self.sample_prompt == (AUTO,)

    @property
    def folder(self) -> Path:
        """Where the run writes: `out`, or its name in `runs`, below the current folder."""
        return self.out or Path("runs") / self.name


def _nested(a: Path, b: Path) -> bool:
    """Whether one of two folders lies in the other."""
    a, b = files.home(a).resolve(), files.home(b).resolve()
    return a.is_relative_to(b) or b.is_relative_to(a)


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
        optim = sections.get("optim", {})
        if not isinstance(optim, dict):
            return value
        kind, name, base = trained(sections)
        settings: dict[str, Any] = {"lr": usual_rate(kind, name, base)}
        settings |= {"betas": (0.9, 0.99)} if name == "lion" else {}
        given = {k: v for k, v in optim.items() if v is not None or k not in settings}
        return {**sections, "optim": {**settings, **given}}

    @model_validator(mode="after")
    def _together(self) -> "Job":
        wrong = [text for holds, text in self._contradictions() if holds]
        if wrong:
            raise ValueError(NEXT.join(wrong))
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
                m.kind == "full" and self.run.format in ("kohya", "peft", "full", "svd"),
                f"--format {self.run.format}: is for adapters",
            ),
            (m.kind != "full" and self.run.format == "single", "--format single: is for all weights"),
            *self._optimizing(),
            *self._useless(),
            *self.objective.contradictions(),
            *self._preserving(),
            *self._decoding(),
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
        if word is None or m.kind == "decoder":  # of which `_decoding` says it
            return []
        return [
            (not m.adapts, "objective.preserve: needs the base beside what is trained, which only an adapter leaves as it was"),
            (m.init in ("pissa", "olora"), f"objective.preserve: method.init {m.init} takes a part out of the base, which is needed whole"),
            (trigger is None, "objective.preserve: there is no trigger that it could stand in the place of; give --trigger"),
            (trigger is not None and says(word, trigger), f"objective.preserve {word}: holds the trigger {trigger}"),
        ]

    def _decoding(self) -> list[tuple[bool, str]]:
        """What means nothing for a decoder, which sees latents and pictures alone."""
        d, r, s = self.data, self.run, self.subject
        if self.method.kind != "decoder":
            return []
        alone = "only the decoder trains, which reads no text; leave it out"
        said: list[tuple[Section, str, str, tuple[str, ...]]] = [
            (d, "data", alone, CAPTIONING),
            (d, "data", "a decoder repaints nothing; leave it out", ("inpaint_mask",)),
            (s, "subject", alone, tuple(Subject.model_fields)),
            (self.method, "method", alone, ("text_encoder", "new_tokens")),
            (self.objective, "objective", "is for a denoiser; a decoder learns by L1 of pixels and of their differences", NOISE),
            (r, "run", "a decoder alone draws no prompt; its sheet shows pictures before and after", ("sample_prompt",)),
        ]
        out = []
        for section, name, why, keys in said:
            for key in keys:
                out.append((getattr(section, key) not in (type(section).model_fields[key].default, 0.0), f"{name}.{key}: {why}"))
        return [
            *out,
            (any(p.caption or p.prefix or p.suffix for p in d.sources), f"data.sources: captions: {alone}"),
            (r.save_dtype != "fp32", f"--save-dtype {r.save_dtype}: would round the encoder too, and with it all latents; fp32"),
            (r.format != "auto", f"--format {r.format}: a decoder is written as a folder of diffusers and as one file; leave it out"),
            (
                r.precision in ("fp16", "bf16"),
                f"--precision {r.precision}: an autoencoder runs in fp32, or pictures turn black; leave it out",
            ),
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
        if self.method.kind == "none":
            return "textual-inversion"
        if self.method.kind == "decoder":
            return "vae"
        return "dreambooth" if self.subject.token else "lora"

    @property
    def trigger(self) -> str | None:
        """What summons what was learned, and stands in front of every caption."""
        if self.subject.token:
            return f"{self.subject.token} {self.subject.class_word}"
        return self.data.trigger or (" ".join(self.method.new_tokens) or None)


# Settings that mean nothing for a decoder: of captions, and of noise.
CAPTIONING = (
    "caption_column", "caption", "trigger", "prefix", "suffix", "caption_lines", "shuffle_tags", "keep_tags", "tag_dropout", "wildcards",
    "caption_variants", "caption_dropout", "template",
)  # fmt: skip
NOISE = tuple(Objective.model_fields)

# What may differ when a run goes on: none of it changes what the steps so far have learned.
FREE_SETTINGS = {
    "optim.steps", "run.out", "run.name", "run.checkpoint_every", "run.keep", "run.keep_finished",
    "run.log_every", "run.holdout_every", "run.sample_prompt",
    "run.sample_every", "run.format", "run.save_dtype", "run.publish_tags", "run.tensorboard", "run.processes",
}  # fmt: skip
