"""A base as the rest of the house sees it: its facts and the few functions in which families differ, composed once."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import diffusers
import torch
from torch import Tensor, nn

from finetune.data.inputs import INPAINT_MASK
from finetune.families import autoencoder, catalogue, patches, tokenizers
from finetune.families.components import Components
from finetune.families.source import Source
from finetune.families.spec import Edition, pixels_per_latent
from finetune.families.vocabulary import Words
from finetune.objectives.diffusion import Schedule
from finetune.objectives.flow import Flow
from finetune.tensors import to_device

Text = dict[str, Tensor]  # what depends on a caption alone: "hidden" [tokens, D], "pooled" [P] ...
Cond = dict[str, Tensor]  # a batch of it, with what the denoiser is told besides: "hidden" [B, tokens, D] ...
Columns = Mapping[str, Tensor]  # a batch's other inputs by name: "crop" [B, 6] ...


class Nets(Protocol):
    """Networks by their place in a step: "denoiser", and the text encoders' folders."""

    def __getitem__(self, place: str, /) -> nn.Module: ...


class Base:
    """What a family's functions stand on: the base's files, its words, where and in which number format it runs."""

    def __init__(self, source: Source, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.source, self.device, self.dtype = source, torch.device(device), dtype
        self.edition = source.spec.edition(source)
        self.words = Words({part: tokenizers.load_tokenizer(source, part) for part in source.spec.text})
        self.windows = {part: self._window(part) for part in source.spec.text}

    def _window(self, part: str) -> int:
        """Tokens that a text encoder reads, start and end included."""
        window = self.edition.windows.get(part)
        if window is None:
            return int(self.source.config(part)["max_position_embeddings"])
        return min(window, int(self.words.tokenizers[part].model_max_length))

    def ids(self, part: str, captions: Sequence[str]) -> Tensor:
        """[B, window] on the device for the text encoder `part`, padded and cut as in inference."""
        texts = [self.words.expand(caption) for caption in captions]
        tokenizer, window = self.words.tokenizers[part], self.windows[part]
        rows = tokenizer(texts, padding="max_length", truncation=True, max_length=window, return_tensors="pt")
        ids: Tensor = rows["input_ids"].to(self.device)
        return ids

    def stacked(self, texts: Sequence[Text]) -> Cond:
        """Texts of one length as a batch, on the device; floating numbers in the run's format."""
        columns = {name: torch.stack([text[name] for text in texts]) for name in texts[0]}
        return {name: self.cast(to_device(column, self.device)) for name, column in columns.items()}

    def cast(self, tensor: Tensor) -> Tensor:
        """Floating numbers in the run's format; masks and ids as they are."""
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def text_rows(**columns: Tensor) -> list[Text]:
    """Columns [B, ...] as a text each."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class Network(Protocol):
    """In what families differ in code, one object for a base; all else is facts in its spec. families/stable_diffusion.py is the shortest.

    It is made with a `Base` and loads nothing.
    """

    def schedule(self) -> Schedule | Flow:
        """The training noise, from the base's own config."""

    def text(self, nets: Nets, captions: Sequence[str]) -> list[Text]:
        """What the denoiser is told of captions, a text each; with gradients where a text encoder trains."""

    def condition(self, texts: Sequence[Text], columns: Columns) -> Cond:
        """Texts of a batch, and what the denoiser is told besides; on the device, floating numbers in the run's format."""

    def predict(self, nets: Nets, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The denoiser's answer, shaped as `x_t` [B, C, H, W]; `t` is [B] as the schedule's objective gives it."""

    def example(self, side: int, device: str) -> dict[str, Any]:
        """Arguments of one denoiser call on one picture of `side` pixels, for counting."""


class Family:
    """A base, from its files to pictures. Networks are loaded by `parts`, when a phase needs them."""

    def __init__(self, base: Base, network: Network) -> None:
        self.base, self.network, self.source, self.spec = base, network, base.source, base.source.spec
        self.window = base.windows[self.spec.counted]  # tokens of a caption, marks included
        self.parts = Components(self.source, self.device, self.dtype)
        self.schedule, self.text, self.predict = network.schedule, network.text, network.predict
        self.condition = network.condition

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format that the denoiser runs in."""
        return self.base.dtype

    @property
    def edition(self) -> Edition:
        """Which of the family's models the base is."""
        return self.base.edition

    @property
    def words(self) -> Words:
        """The tokenizers of all text encoders, and the new tokens that they were told."""
        return self.base.words

    @property
    def factor(self) -> int:
        """Pixels per latent that the denoiser takes, along a side."""
        return self.spec.patch * pixels_per_latent(self.source)

    @property
    def room(self) -> int:
        """Tokens of a caption that the encoder reads at least, without the start and end marks."""
        return self.window - 2

    @property
    def resolution(self) -> int:
        """The side in pixels that the base was trained for."""
        return self.edition.resolution

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> posterior mean and deviation [B, C, H/f, W/f], in the denoiser's units."""
        return autoencoder.encode(self.parts.load("vae"), pixels)

    def decode(self, latents: Tensor, height: int, width: int) -> Tensor:
        """What the pipeline draws, latents or packed tokens of them -> pixels [B, 3, height, width] in [-1, 1], fp32 on the CPU."""
        if latents.ndim == 3:
            factor = pixels_per_latent(self.source)
            latents = patches.unpack(latents, height // factor, width // factor)
        return autoencoder.decode(self.parts.load("vae"), latents)

    def tokens(self, caption: str) -> int:
        """Tokens of a caption without the start and end marks; the encoder reads `room` of them at least."""
        return len(self.words.ids(self.spec.counted, caption))

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> list[Text]:
        """What the base's own text encoders, loaded for it, make of captions; on the CPU."""
        nets = {part: self.parts.load(part) for part in self.spec.text}
        return [{name: tensor.cpu() for name, tensor in text.items()} for text in self.text(nets, captions)]

    def idle(self, part: str) -> tuple[str, ...]:
        """Beginnings of the names of weights that a network has and no answer depends on, by its folder or its place in a step; of a text
        encoder with and without the prefix that versions of transformers leave out."""
        folder = part if part in self.spec.components else self.spec.denoiser
        if not self.spec.components[folder].idle:
            return ()
        config = self.source.config(folder)
        last = int(config.get("num_hidden_layers") or config["num_layers"]) - 1
        bare = tuple(name.format(last=last) for name in self.spec.components[folder].idle)
        prefix = self.spec.names.text[folder].prefix if folder in self.spec.text else ""
        return bare + tuple(prefix + name for name in bare)

    def unconditional(self, empty: Text) -> Text:
        """What inference puts in the place of a caption, from what `text` makes of the empty one."""
        if not self.edition.zeros:
            return empty
        return {name: tensor * 0 for name, tensor in empty.items()}  # a product, so that a text encoder in training stays in the graph

    def pipeline(self, denoiser: nn.Module | None = None, sampler: str | None = None) -> Any:
        """The inference pipeline for encoded prompts (`prompt`) and latent output (`decode`): each part keeps its own precision."""
        spec = self.spec
        networks = {"vae": self.parts.load("vae"), spec.denoiser: denoiser or self.parts.load(spec.denoiser)}
        absent = dict.fromkeys((*spec.text, *spec.tokenizers))
        cls = getattr(diffusers, self.edition.pipeline or spec.pipelines[0])
        return cls(**networks, **absent, scheduler=self.source.sampler(sampler), **spec.pipeline_options)

    def prompt(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        """The pipeline's arguments for a caption that is encoded already; `negative` has no place where guidance is distilled in."""
        embeds = {argument: text[name] for argument, name in self.spec.prompt.items()}
        if self.spec.calls > 1:
            embeds |= {f"negative_{argument}": negative[name] for argument, name in self.spec.prompt.items()}
        arguments: dict[str, Any] = {name: self.base.cast(tensor[None].to(self.device)) for name, tensor in embeds.items()}
        arguments["guidance_scale"] = guidance
        if rescale := self.source.guidance_rescale:
            arguments["guidance_rescale"] = rescale
        return arguments

    @property
    def repaints(self) -> bool:
        """Whether the denoiser is told what of a picture is to be repainted, and the rest of it."""
        return INPAINT_MASK in self.edition.reads

    def inference(self) -> tuple[int, float]:
        """Sampling steps and guidance that suit the base."""
        return self.edition.steps, self.source.guidance or self.edition.guidance

    def notes(self) -> list[str]:
        """What should be said of the base before it is trained."""
        lacking = catalogue.of_name(self.spec.name).encoders.keys() - self.spec.encoders.keys()
        said = [f"note: {self.source.id} has no {part}: it is trained and drawn without, as its pipeline does" for part in sorted(lacking)]
        named = next((word for word in self.spec.distilled if word in self.source.id.lower()), None)
        what = self.edition.distilled or (f"few steps ({named})" if named else "")
        if what:
            better = f"training undoes that, `--base {self.spec.learns_better}` learns better"
            said.append(f"note: {self.source.id} is distilled for {what}; {better}")
        return said

    def example(self, side: int, device: str = "meta") -> dict[str, Any]:
        """Arguments of one denoiser call on one picture of `side` pixels, for counting."""
        return self.network.example(side, device)

    def latents(self, side: int, device: str = "meta") -> Tensor:
        """What the autoencoder decodes to one picture of `side` pixels, for counting."""
        side //= pixels_per_latent(self.source)
        return torch.zeros(1, int(self.source.config("vae")["latent_channels"]), side, side, device=device)
