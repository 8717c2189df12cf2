"""What trains in a run: a list of trainees, made of the job once; start, dry run, plan and export walk the same list."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from finetune.config.adapter_types import ROWS
from finetune.config.job import Job
from finetune.config.method import usual_rate
from finetune.errors import ConfigError
from finetune.families.family import Family
from finetune.methods import adapter, full, textual_inversion
from finetune.methods.adapter import Size, Start
from finetune.methods.textual_inversion import NewRows

DENOISER = "denoiser"
Noun = Literal["adapter", "model", "embedding"]  # what files are called by what they hold


@dataclass(frozen=True)
class Rates:
    """Peak learning rate and weight decay, until a share of the steps."""

    rate: float
    decay: float
    until: float = 1.0


class How(Protocol):
    """A way to train a network."""

    @property
    def noun(self) -> Noun:
        """Of the file that it ends in."""

    @property
    def masters(self) -> torch.dtype | None:
        """The number format that the network is loaded in; None: that which it runs in."""

    def attach(self, net: nn.Module) -> dict[str, nn.Parameter]:
        """What trains, by name, in a frozen network that takes it."""

    def count(self, net: nn.Module) -> dict[str, int]:
        """Numbers of what `attach` gives, by name, on a network without weights, which it may change."""

    def factors(self, parameter: str) -> tuple[float, float]:
        """What the rate and the decay of a parameter are times those of the trainee."""

    def settle(self, net: nn.Module, progress: float) -> None:
        """What follows an update at a share of the steps."""


@dataclass(frozen=True)
class Adapter:
    """Low-rank and other changes of layers, PEFT's (methods/adapter.py)."""

    job: Job
    wanted: Mapping[str, Size]  # by layer
    start: Start | None = None
    noun: Noun = "adapter"
    masters: torch.dtype | None = None

    def attach(self, net: nn.Module) -> dict[str, nn.Parameter]:
        return adapter.attach(net, self.job.method, self.wanted, self.job.run.seed, self.start)

    def count(self, net: nn.Module) -> dict[str, int]:
        return {name: parameter.numel() for name, parameter in self.attach(net).items()}

    def factors(self, parameter: str) -> tuple[float, float]:
        """LoRA+ for up matrices; no decay of what stands for the base's own weights: DoRA's norms, and matrices that begin with a part
        of them."""
        row, method = ROWS[self.job.method.kind], self.job.method
        of_base = method.init in adapter.FROM_BASE or row.names("rows", parameter)
        return self.job.optim.lora_plus if row.names("up", parameter) else 1.0, 0.0 if of_base else 1.0

    def settle(self, net: nn.Module, progress: float) -> None:
        """The change is kept within its bound."""
        if self.job.method.max_norm is not None:
            adapter.limit(net, self.job.method.max_norm)


@dataclass(frozen=True)
class Whole:
    """All weights of a network, but for the `idle` beginnings of names that nothing reads."""

    masters: torch.dtype | None
    idle: tuple[str, ...] = ()
    noun: Noun = "model"

    def attach(self, net: nn.Module) -> dict[str, nn.Parameter]:
        return full.attach(net, self.idle, self.masters or torch.float32)

    def count(self, net: nn.Module) -> dict[str, int]:
        return {name: parameter.numel() for name, parameter in self.attach(net).items()}

    def factors(self, parameter: str) -> tuple[float, float]:
        return 1.0, 1.0

    def settle(self, net: nn.Module, progress: float) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Rows:
    """New tokens' embeddings in a text encoder (methods/textual_inversion.py)."""

    job: Job
    part: str
    first: int  # id of the first new row
    like: Sequence[int]  # ids that a token begins as
    noun: Noun = "embedding"
    masters: torch.dtype | None = None

    def attach(self, net: nn.Module) -> dict[str, nn.Parameter]:
        """Raises nothing: the family's words know the tokens already."""
        m = self.job.method
        table = net.get_input_embeddings().weight[: self.first]  # type: ignore[operator]
        rows = []
        for token in m.new_tokens:
            rows.append(textual_inversion.initial(table, self.like, m.vectors, self.job.run.seed, "new token", token, self.part))
        return {"new_tokens": textual_inversion.attach(net, torch.cat(rows), self.first).rows}

    def count(self, net: nn.Module) -> dict[str, int]:
        width: int = net.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        return {"new_tokens": len(self.job.method.new_tokens) * self.job.method.vectors * width}

    def factors(self, parameter: str) -> tuple[float, float]:
        return 1.0, 1.0

    def settle(self, net: nn.Module, progress: float) -> None:
        """The norms are kept near those of words while the rows train."""
        if progress >= self.job.method.token_until:
            return
        for module in net.modules():
            if isinstance(module, NewRows):
                module.retract()


@dataclass(frozen=True)
class Trainee:
    """A network that trains, by its place in a step, and how. Several may share a place."""

    part: str
    how: How
    rates: Rates
    patterns: bool = True  # whether optim.lr_pattern is for its parameters, too


@dataclass(frozen=True)
class Group:
    """Parameters by name that train at one peak rate, until a share of the steps."""

    parameters: Mapping[str, nn.Parameter]
    lr: float
    weight_decay: float
    until: float = 1.0


@dataclass(frozen=True)
class Counted:
    """The same of a run that is only planned."""

    part: str
    parameters: int
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Trainees:
    """All that trains in a run."""

    family: Family
    job: Job
    each: tuple[Trainee, ...]

    def __iter__(self) -> Iterator[Trainee]:
        return iter(self.each)

    def of(self, noun: Noun) -> list[Trainee]:
        """Those that end in a file of this kind."""
        return [trainee for trainee in self.each if trainee.how.noun == noun]

    @property
    def live(self) -> bool:
        """Whether the text encoders take part in every step."""
        return any(trainee.part in self.family.spec.text for trainee in self.each)

    @property
    def places(self) -> dict[str, str]:
        """The networks that take part in a step, by place, as the folders of the base that they come from."""
        text = self.family.spec.text if self.live else ()
        return {DENOISER: self.family.spec.denoiser, **{part: part for part in text}}

    @property
    def layers(self) -> list[str]:
        """The denoiser's layers that an adapter changes."""
        adapted = [t.how for t in self.of("adapter") if t.part == DENOISER]
        return [layer for how in adapted if isinstance(how, Adapter) for layer in how.wanted]

    def load(self) -> dict[str, Any]:
        """The networks that take part, by place; what trains whole is a master."""
        masters = {trainee.part: trainee.how.masters for trainee in self.each if trainee.how.masters is not None}
        return {place: self.family.parts.load(folder, masters.get(place)) for place, folder in self.places.items()}

    def attach(self, nets: Mapping[str, nn.Module]) -> list[Group]:
        """Freezes all `nets`, injects, and returns what trains in groups of one rate and decay each; new tokens' rows of all text
        encoders are one.

        Raises:
            ConfigError: a layer that the adapter's type cannot change, or a pattern that matches nothing.
        """
        for net in nets.values():
            net.requires_grad_(False)
            undrop(net)
        parameters = [{f"{t.part}.{name}": p for name, p in t.how.attach(nets[t.part]).items()} for t in self.each]
        groups = []
        for names, rates in self._grouped(parameters):
            trains = {name: parameters[i][name] for i, name in names}
            groups.append(Group(trains, rates.rate, rates.decay, rates.until))
        trained = {id(p) for group in groups for p in group.parameters.values()}
        for some in parameters:
            for parameter in some.values():
                parameter.requires_grad_(id(parameter) in trained)
        return groups

    def count(self, nets: Mapping[str, nn.Module]) -> list[Counted]:
        """What `attach` would group, on networks without weights.

        Raises:
            ConfigError: see `attach`.
        """
        for net in nets.values():
            net.requires_grad_(False)
        numbers = [{f"{t.part}.{name}": n for name, n in t.how.count(nets[t.part]).items()} for t in self.each]
        out = []
        for names, rates in self._grouped(numbers):
            trainee = self.each[names[0][0]]
            part = "new_tokens" if trainee.how.noun == "embedding" else trainee.part
            out.append(Counted(part, sum(numbers[i][name] for i, name in names), rates.rate, rates.decay))
        return out

    def _grouped(self, parameters: Sequence[Mapping[str, object]]) -> list[tuple[list[tuple[int, str]], Rates]]:
        """The parameters that train, by trainee and name, in groups of one rate and decay: the trainee's, times that of the pattern that is
        found in the name, times its own factors.

        Raises:
            ConfigError: see `adapter.spread`; or nothing would train.
        """
        patterned = [name for t, names in zip(self.each, parameters, strict=True) if t.patterns for name in names]
        by_pattern = adapter.spread("optim.lr_pattern", self.job.optim.lr_pattern, patterned)
        groups: dict[tuple[int, Rates], list[tuple[int, str]]] = {}
        first_rows = next((i for i, t in enumerate(self.each) if t.how.noun == "embedding"), -1)
        for i, (trainee, names) in enumerate(zip(self.each, parameters, strict=True)):
            together = first_rows if trainee.how.noun == "embedding" else i
            for name in names:
                rate, decay = trainee.how.factors(name)
                pattern = by_pattern.get(name, 1.0) if trainee.patterns else 1.0
                rates = Rates(trainee.rates.rate * pattern * rate, trainee.rates.decay * decay, trainee.rates.until)
                if rates.rate > 0:
                    groups.setdefault((together, rates), []).append((i, name))
        trains = {i for names in groups.values() for i, _ in names}
        if patterned and not any(self.each[i].patterns for i in trains):
            raise ConfigError("optim.lr_pattern: nothing would train, as all factors are 0", "leave some parameters out of the patterns")
        return [(names, rates) for (_, rates), names in groups.items()]

    def settle(self, nets: Mapping[str, nn.Module], progress: float) -> None:
        """What follows an update at a share of the steps."""
        for trainee in self.each:
            trainee.how.settle(nets[trainee.part], progress)

    def base(self, nets: Mapping[str, nn.Module]) -> Callable[[], AbstractContextManager[None]]:
        """Within what it gives, the networks answer as before they were trained: adapters are off. Whole weights have no before."""
        return lambda: adapter.disabled(nets.values())


def trainees(family: Family, job: Job, start: Mapping[str, Start] | None = None) -> Trainees:
    """What the job trains; `start` is what an adapter goes on from, by network and layer. The only place that reads `method.kind`.

    Raises:
        ConfigError: a target or a pattern matches no layer.
    """
    m, o = job.method, job.optim
    each = []
    wanted = layers(family, job, start) if m.adapts else {}
    masters = torch.bfloat16 if o.masters == "bf16" else torch.float32
    for part in taught(family, job):
        how: How = Adapter(job, wanted[part], (start or {}).get(part)) if m.adapts else Whole(masters, family.idle(part))
        rate = o.lr if part == DENOISER else text_encoder_rate(job)
        each.append(Trainee(part, how, Rates(rate, o.weight_decay)))
    for part in family.spec.text if m.new_tokens else ():
        like = family.words.ids(part, m.init_word) if m.init_word else []
        rows = Rows(job, part, family.words.size[part], like)
        each.append(Trainee(part, rows, Rates(token_rate(job), 0.0, m.token_until), patterns=False))
    return Trainees(family, job, tuple(each))


def text_encoder_rate(job: Job) -> float:
    """A fifth of the denoiser's where none is given; the same for an optimizer that finds one rate for all."""
    return job.method.text_encoder_lr or (job.optim.lr if job.optim.one_rate else job.optim.lr / 5)


def token_rate(job: Job) -> float:
    """Of new tokens: the job's where they train alone; beside an adapter, where none is given, what they would train with alone."""
    m, o = job.method, job.optim
    return o.lr if m.kind == "none" or o.one_rate else m.token_lr or usual_rate("none", o.optimizer, job.model.base)


def taught(family: Family, job: Job) -> list[str]:
    """The networks that train by the job's kind, an adapter or all weights: by their places in a step."""
    m = job.method
    return ([DENOISER] if m.kind != "none" else []) + (list(family.spec.taught_text) if m.text_encoder else [])


def layers(family: Family, job: Job, start: Mapping[str, Start] | None = None) -> dict[str, dict[str, Size]]:
    """The layers that an adapter goes into, by network, with their ranks and alphas: those of `start`, or what the job asks for.

    Targets that were named by hand are the denoiser's; a text encoder's attention is adapted then.

    Raises:
        ConfigError: a target matches no linear or convolution layer, or a pattern none of those that are adapted.
    """
    m, spec = job.method, family.spec
    if start is not None:
        return {part: {n: learned.size for n, learned in start[part].items()} for part in taught(family, job)}
    matching: dict[str, list[str]] = {}
    for part in taught(family, job):
        choices = spec.text_targets if part in spec.text else spec.targets
        targets = m.targets if part == DENOISER or m.targets in choices else "attention"
        net = family.parts.skeleton(spec.denoiser if part == DENOISER else part)
        matching[part] = [name for name in adapter.matching(net, targets, choices) if not unused(family, part, name)]
    sizes = adapter.sizes(m, [f"{part}.{n}" for part, names in matching.items() for n in names])
    return {part: {n: sizes[f"{part}.{n}"] for n in names} for part, names in matching.items()}


def unused(family: Family, part: str, module: str) -> bool:
    """Whether a text encoder's layer has no effect on what is drawn, and so would have no gradient."""
    return module.removeprefix("text_model.").startswith(family.idle(part))


def recompute(nets: Mapping[str, Any]) -> None:
    """Activations are computed again in the backward pass; frozen inputs keep their gradients that way, so never re-entrant."""
    for part, net in nets.items():
        if part == DENOISER:
            net.enable_gradient_checkpointing()
        else:
            how = {"use_reentrant": False}
            if hasattr(net, "activation_checkpointing_enable"):  # transformers 5.23 renamed it
                net.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
            else:
                net.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def undrop(net: nn.Module) -> None:
    """Turns off the dropout that a network came with, as in T5: what it says while it trains is what it will say when it is used."""
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(vars(module).get("dropout"), float):  # the attention of transformers
            module.dropout = 0.0  # type: ignore[assignment]
