"""What trains in a run: a list of trainees, made of the job once; start, dry run, plan and export walk the same list."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from finetune.config.job import Job
from finetune.config.method import usual_rate
from finetune.errors import ConfigError
from finetune.families.family import Family
from finetune.methods import adapter
from finetune.methods.adapter import RankAlpha, Start
from finetune.methods.layer import AdaptedLayer
from finetune.methods.networks import undrop
from finetune.methods.ways import Adapter, How, Noun, Rows, Whole

DENOISER, AUTOENCODER = "denoiser", "vae"  # their places in a step; a text encoder's is its folder


@dataclass(frozen=True)
class Rates:
    """Peak learning rate and weight decay, until a share of the steps."""

    rate: float
    decay: float
    until: float = 1.0


@dataclass(frozen=True)
class Trainee:
    """A network that trains, by its place in a step, and how. Several may share a place."""

    part: str
    how: How
    rates: Rates
    patterns: bool = True  # whether optim.lr_pattern is for its parameters, too

    @property
    def group(self) -> str:
        """What shares groups of parameters: a place, but new tokens' rows of all text encoders are one; a part of a network by its name."""
        return {"embedding": "new_tokens", "decoder": "decoder"}.get(self.how.noun, self.part)

    def rates_of(self, parameter: str, pattern: float) -> Rates:
        """The trainee's, times those of the pattern that is found in the parameter's name, times its own factors."""
        rate, decay = self.how.factors(parameter)
        return Rates(self.rates.rate * pattern * rate, self.rates.decay * decay, self.rates.until)


@dataclass(frozen=True)
class ParameterGroup:
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


V = TypeVar("V")


@dataclass(frozen=True)
class _Named(Generic[V]):
    """A parameter, or its size, by a name that begins with its network's place."""

    trainee: Trainee
    name: str
    value: V


@dataclass(frozen=True)
class Trainees:
    """All that trains in a run."""

    family: Family
    job: Job
    each: tuple[Trainee, ...]
    asked: frozenset[str]  # the networks that the objective asks: see `Objective.networks`

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
        folders = {DENOISER: self.family.spec.denoiser, AUTOENCODER: AUTOENCODER}
        text = self.family.spec.text if self.live else ()
        return {place: folder for place, folder in folders.items() if place in self.asked} | {part: part for part in text}

    @property
    def place(self) -> str:
        """Of the network that the run is about: the denoiser, or the autoencoder."""
        return next(iter(self.places))

    @property
    def folder(self) -> str:
        """The base's folder of that."""
        return self.places[self.place]

    @property
    def layers(self) -> list[str]:
        """The denoiser's layers that an adapter changes."""
        names: list[str] = []
        for trainee in self.each:
            if trainee.part == DENOISER and isinstance(trainee.how, Adapter):
                names += trainee.how.wanted
        return names

    def load(self) -> dict[str, nn.Module]:
        """The networks that take part, by place; what trains whole is a master."""
        masters = {trainee.part: trainee.how.masters for trainee in self.each if trainee.how.masters is not None}
        return {place: self.family.parts.load(folder, masters.get(place)) for place, folder in self.places.items()}

    def attach(self, nets: Mapping[str, nn.Module]) -> list[ParameterGroup]:
        """Freezes all `nets`, injects, and returns what trains in groups of one rate and decay each; new tokens' rows of all text
        encoders are one.

        Raises:
            ConfigError: a layer that the adapter's type cannot change, or a pattern that matches nothing.
        """
        for net in nets.values():
            net.requires_grad_(False)
            undrop(net)
        parameters: list[_Named[nn.Parameter]] = []
        for trainee in self.each:
            for name, parameter in trainee.how.attach(nets[trainee.part]).items():
                parameters.append(_Named(trainee, f"{trainee.part}.{name}", parameter))
        groups = []
        for _, rates, members in self._grouped(parameters):
            groups.append(ParameterGroup({m.name: m.value for m in members}, rates.rate, rates.decay, rates.until))
        grouped = set[str]().union(*(group.parameters for group in groups))
        for one in parameters:
            one.value.requires_grad_(one.name in grouped)
        return groups

    def count(self, nets: Mapping[str, nn.Module]) -> list[Counted]:
        """What `attach` would group, on networks without weights.

        Raises:
            ConfigError: see `attach`.
        """
        for net in nets.values():
            net.requires_grad_(False)
        numbers: list[_Named[int]] = []
        for trainee in self.each:
            for name, number in trainee.how.count(nets[trainee.part]).items():
                numbers.append(_Named(trainee, f"{trainee.part}.{name}", number))
        counted = []
        for group, rates, members in self._grouped(numbers):
            counted.append(Counted(group, sum(m.value for m in members), rates.rate, rates.decay))
        return counted

    def _grouped(self, parameters: Sequence[_Named[V]]) -> list[tuple[str, Rates, list[_Named[V]]]]:
        """The parameters that train, in groups of one rate and decay, each with what shares it.

        Raises:
            ConfigError: see `adapter.spread`; or nothing would train.
        """
        patterned = [one.name for one in parameters if one.trainee.patterns]
        by_pattern = adapter.spread("optim.lr_pattern", self.job.optim.lr_pattern, patterned)
        groups: dict[tuple[str, Rates], list[_Named[V]]] = {}
        trains = not patterned
        for one in parameters:
            rates = one.trainee.rates_of(one.name, by_pattern.get(one.name, 1.0) if one.trainee.patterns else 1.0)
            if rates.rate > 0:
                groups.setdefault((one.trainee.group, rates), []).append(one)
                trains = trains or one.trainee.patterns
        if not trains:
            raise ConfigError("optim.lr_pattern: nothing would train, as all factors are 0", "leave some parameters out of the patterns")
        return [(group, rates, members) for (group, rates), members in groups.items()]

    def settle(self, nets: Mapping[str, nn.Module], progress: float) -> None:
        """What follows an update at a share of the steps."""
        for trainee in self.each:
            trainee.how.settle(nets[trainee.part], progress)

    def base(self, nets: Mapping[str, nn.Module]) -> Callable[[], AbstractContextManager[None]]:
        """Within what it gives, the networks answer as before they were trained: adapters are off. Whole weights have no before."""
        layers: list[AdaptedLayer] = []
        for net in nets.values():
            layers += adapter.layers(net).values()
        return lambda: adapter.disabled(layers)


def trainees(family: Family, job: Job, asked: frozenset[str], start: Mapping[str, Start] | None = None) -> Trainees:
    """What the job trains. `asked` are the networks that its objective asks; `start` is what an adapter goes on from, by network and layer.

    Raises:
        ConfigError: a target or a pattern matches no layer.
    """
    if job.method.adapts:
        wanted = adapted_layers(family, job, start)
        networks: dict[str, How] = {part: Adapter(job, wanted[part], (start or {}).get(part)) for part in taught(family, job)}
    elif job.method.kind == "decoder":  # post_quant_conv, which mixes the channels of latents, stays with the encoder as it is
        networks = {AUTOENCODER: Whole(torch.float32, only="decoder.", noun="decoder")}
    else:
        masters = torch.bfloat16 if job.optim.masters == "bf16" else torch.float32
        networks = {part: Whole(masters, family.idle(part)) for part in taught(family, job)}
    each = []
    for part, how in networks.items():
        rate = text_encoder_rate(job) if part in family.spec.text else job.optim.lr
        each.append(Trainee(part, how, Rates(rate, job.optim.weight_decay)))
    return Trainees(family, job, (*each, *_new_rows(family, job)), asked)


def _new_rows(family: Family, job: Job) -> list[Trainee]:
    """The new tokens' in every text encoder."""
    m, new = job.method, list[Trainee]()
    if not m.new_tokens:
        return new
    rates = Rates(token_rate(job), 0.0, m.token_until)
    for part in family.spec.text:
        like = family.words.ids(part, m.init_word) if m.init_word else []
        new.append(Trainee(part, Rows(job, part, family.words.size[part], like), rates, patterns=False))
    return new


def text_encoder_rate(job: Job) -> float:
    """A fifth of the denoiser's where none is given; the same for an optimizer that finds one rate for all."""
    if job.method.text_encoder_lr:
        return job.method.text_encoder_lr
    return job.optim.lr if job.optim.one_rate else job.optim.lr / 5


def token_rate(job: Job) -> float:
    """Of new tokens: the job's where they train alone; beside an adapter, where none is given, what they would train with alone."""
    m, o = job.method, job.optim
    if m.kind == "none" or o.one_rate:
        return o.lr
    return m.token_lr or usual_rate("none", o.optimizer, job.model.base)


def taught(family: Family, job: Job) -> list[str]:
    """The networks that train by the job's kind, an adapter or all weights: by their places in a step."""
    denoiser = (DENOISER,) if job.method.kind not in ("none", "decoder") else ()
    text = family.spec.taught_text if job.method.text_encoder else ()
    return [*denoiser, *text]


def adapted_layers(family: Family, job: Job, start: Mapping[str, Start] | None = None) -> dict[str, dict[str, RankAlpha]]:
    """The layers that an adapter goes into, by network, with their ranks and alphas: those of `start`, or what the job asks for.

    Targets that were named by hand are the denoiser's; a text encoder's attention is adapted then.

    Raises:
        ConfigError: a target matches no linear or convolution layer, or a pattern none of those that are adapted.
    """
    m, spec = job.method, family.spec
    if start is not None:
        return {part: {name: learned.size for name, learned in start[part].items()} for part in taught(family, job)}
    matching: dict[str, list[str]] = {}
    for part in taught(family, job):
        choices = spec.text_targets if part in spec.text else spec.targets
        targets = m.targets if part == DENOISER or m.targets in choices else "attention"
        net = family.parts.skeleton(spec.denoiser if part == DENOISER else part)
        idle = family.idle(part)  # which would have no gradient
        matching[part] = [name for name in adapter.matching(net, targets, choices) if not name.startswith(idle)]
    placed: list[str] = []
    for part, names in matching.items():
        placed += [f"{part}.{name}" for name in names]
    sizes = adapter.sizes(m, placed)
    return {part: {name: sizes[f"{part}.{name}"] for name in names} for part, names in matching.items()}
