"""Pictures from prompts and adapter files, held to what the files say about their use."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from finetune import files
from finetune.adapters import decoder, embedding
from finetune.adapters.chosen import parse_adapter
from finetune.adapters.contract import model_of
from finetune.adapters.embedding import Embedding
from finetune.adapters.read import AdapterFile, read
from finetune.config import read_yaml
from finetune.config.method import EMBEDDED
from finetune.data import lettering
from finetune.data.crop import same_proportions
from finetune.data.encoded import Text
from finetune.data.sample import Size
from finetune.errors import ConfigError, DataError, line
from finetune.families import load, source, trust
from finetune.families.family import Family
from finetune.families.source import Source
from finetune.run_folder import RunFolder
from finetune.sampling import apply, canvas, draw, names, prompt
from finetune.sampling.canvas import Canvas
from finetune.sampling.pipeline import Pipeline

MOST_SIDE, MOST_STEPS = 8192, 10_000  # that files and flags may ask for
MOST = 100  # of guidance: beyond it, and far before, all is noise


@dataclass(frozen=True)
class Request:
    prompts: Sequence[str]
    adapters: Sequence[str] = ()  # path[:weight]
    embeddings: Sequence[Path] = ()
    base: str | None = None
    negative: str = ""
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    count: int = 1
    resolution: int | None = None  # of both sides where they are not given
    batch: int | None = None  # pictures at once
    out: Path = Path("pictures")
    width: int | None = None
    height: int | None = None
    image: Path | None = None  # that is drawn upon
    mask: Path | None = None  # what of it is repainted: white
    replace: bool = False  # pictures of the same names; else the names are numbered on
    vae: Path | None = None  # another autoencoder's file or folder


def choose_base(asked: str | None, adapters: Sequence[AdapterFile | Embedding]) -> Source:
    """The base that was asked for, else the one that the files name; opened as in their training.

    Raises:
        ConfigError: they name different ones, or none does.
    """
    records = [record for a in adapters if a.contract and (record := own_base(a.path.parent))]
    bases: set[str] = set()
    if not asked:
        bases = {_named(a) for a in adapters if a.contract}
    if len(bases) > 1:
        raise ConfigError(f"the adapters were trained on different bases: {', '.join(sorted(bases))}", "choose one with --base")
    if not asked and adapters and not bases:
        raise ConfigError(f"{adapters[0].path}: does not say its base", "give --base")
    base = asked or next(iter(bases), EMBEDDED)
    how = next((record for record in records if record["base"] == base), {})
    prediction = how.get("prediction_type") or next((a.contract.prediction_type for a in adapters if a.contract), None)
    single = files.home(base).is_file() and prediction in ("epsilon", "v_prediction")
    where = source.resolve_base(base, how.get("variant"), prediction=prediction if single else None)
    ends = {a.contract.zero_terminal_snr for a in adapters if a.contract}
    if len(ends) > 1:
        raise ConfigError("some of the adapters were trained with zero terminal SNR, and others not", "draw with them one at a time")
    return replace(where, zero_snr=ends == {True})


def _named(adapter: AdapterFile | Embedding) -> str:
    """The base to draw with. A file from elsewhere may name what it likes: only what is known, or what the user has trained on, is opened.

    Raises:
        ConfigError: it names another base.
    """
    contract = adapter.contract
    assert contract  # noqa: S101  asked only of adapters that have one
    record, base = own_base(adapter.path.parent), contract.base
    if record and (base == record["base"] or "/" not in base):  # no header holds a path
        return str(record["base"])
    if known := source.known_name(base):
        return known
    pinned = f"{base}@{contract.base_revision}" if contract.base_revision and "/" in base else base
    for name in (pinned, base):
        if "/" in base and trust.trusted(name):
            return name
    raise ConfigError(
        f"{adapter.path}: was trained on {line(pinned)}, as it says itself, which is no base that is known here",
        f"--base {shlex.quote(line(pinned))} draws with that, if you trust it; --base FOLDER with your own copy",
    )


def own_base(folder: Path) -> dict[str, Any]:
    """What the run in that folder says of its base, where that is one that the user has trained on."""
    record = RunFolder(folder).record
    if not record.is_file():
        return {}
    model = read_yaml(record).get("model")
    if not (isinstance(model, dict) and isinstance(model.get("base"), str) and trust.trusted(model["base"])):
        return {}
    return model


def sampler_for(family: Family, request: Request, adapters: Sequence[AdapterFile | Embedding]) -> str:
    """The sampler to use.

    Raises:
        ConfigError: a sampler that is not legal for the family, or a side that the autoencoder cannot make.
        DataError: a base that contradicts an adapter: another family, prediction type or shape, or without --base other weights.
    """
    spec, where = family.spec, family.source
    contracts = [(a, a.contract) for a in adapters if a.contract]
    for adapter, contract in contracts:
        if contract.family != spec.name:
            raise DataError(f"{adapter.path}: trained for {contract.family}, and {where.id} is {spec.name}", apply.OTHER)
        if not (MOST_SIDE >= contract.resolution > 0 and MOST_STEPS >= contract.steps > 0 and 0 <= contract.guidance <= MOST):
            how = f"{contract.resolution:g} pixels, {contract.steps:g} steps and guidance {contract.guidance:g}"
            raise DataError(f"{adapter.path}: asks for {how}, which no base is drawn with", "the file is damaged, or means harm")
        here = family.schedule().prediction_type
        if contract.prediction_type != here:
            raise DataError(f"{adapter.path}: trained for {contract.prediction_type}, and {where.id} predicts {here}", apply.OTHER)
    for adapter in (a for a in adapters if isinstance(a, AdapterFile)):
        theirs, ours = model_of(adapter.metadata), family.edition.architecture
        if spec.apart and adapter.contract and theirs != ours:
            raise DataError(f"{adapter.path}: trained for {theirs}, and {where.id} is {ours}", apply.OTHER)
        if what := apply.misfit(family, adapter.on(spec.denoiser)):
            raise DataError(f"{adapter.path}: {where.id} {what}", apply.OTHER)
    if not request.base and any(c.base_sha256 != where.fingerprint(spec.denoiser) for _, c in contracts):
        raise DataError(f"{adapters[0].path}: trained on other weights than this {where.id}", f"--base {where.id} uses it all the same")
    sampler = request.sampler or (contracts[0][1].sampler if contracts else spec.sampler)
    if sampler not in spec.samplers:
        raise ConfigError(f"--scheduler {sampler}: not for {spec.name}; legal are {', '.join(spec.samplers)}")
    if sampler == "pndm" and where.config("scheduler").get("rescale_betas_zero_snr"):
        raise ConfigError("--scheduler pndm: cannot begin at pure noise, which this was trained for", "ddim, euler or dpm++")
    if sampler == "lcm" and not any("lcm" in name.lower() for name in (where.id, *request.adapters)):
        raise ConfigError("--scheduler lcm: needs weights distilled for it; this base and these adapters are not", "leave it out")
    return sampler


@dataclass(frozen=True)
class Composed:
    pipeline: Pipeline
    texts: dict[str, Text]
    unconditional: Text


def compose(
    family: Family,
    adapters: Sequence[tuple[AdapterFile, float]],
    embeddings: Sequence[Embedding],
    prompts: Sequence[str],
    sampler: str | None = None,
) -> Composed:
    """A base with files applied, ready to draw `prompts`; the text encoders are freed once these are encoded."""
    apply.to_words(family, embeddings)
    apply.to_text_encoders(family, adapters)
    encoded = {p: family.texts([p])[0] for p in {*prompts, ""}}
    family.parts.free(*family.spec.text)
    pipeline = family.pipeline(sampler=sampler)
    apply.to_denoiser(family, pipeline, adapters)
    return Composed(pipeline, encoded, family.unconditional(encoded[""]))


Bar = Callable[[str, int], AbstractContextManager[Callable[[float], None]]]  # of so many pictures; yields what is told how many are done


def no_bar(name: str, total: int) -> AbstractContextManager[Callable[[float], None]]:
    return nullcontext(lambda done: None)


def generate(request: Request, say: Callable[[str], None], bar: Bar = no_bar) -> list[dict[str, Any]]:
    """Draws every prompt `count` times, writes PNGs beside what is there, and returns their paths and parameters."""
    files.check_writable(request.out)
    chosen = [parse_adapter(a) for a in request.adapters]
    adapters = [read(path) for path, _ in chosen]
    embeddings = [embedding.read(files.home(path)) for path in request.embeddings]
    for adapter in adapters:
        embeddings += embedding.bundled(adapter)
    weighted = [(a, weight) for a, (_, weight) in zip(adapters, chosen, strict=True)]
    files_given: list[AdapterFile | Embedding] = [*adapters, *embeddings]
    where = choose_base(request.base, files_given)
    if request.vae:
        where = decoder.in_place(where, request.vae)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    half = device is not None and not apply.needs_fp32(adapters)
    family = load.family(where, device or "cpu", torch.float16 if half else torch.float32)
    sampler = sampler_for(family, request, files_given)
    contracts = [c for a in files_given if (c := a.contract)]
    (steps, guidance), resolution = family.inference(), family.resolution
    usual_guidance = guidance
    if contracts:
        steps, guidance, resolution = contracts[0].steps, contracts[0].guidance, contracts[0].resolution
    steps = request.steps or steps
    if request.guidance is not None:
        guidance = request.guidance
    canvas.check_masked(family, request.image, request.mask)
    on = canvas.opened(request.image, request.mask) if request.image and request.mask else None
    width, height = sides(family, request, resolution, on)
    if on and request.image:
        own, size = Size(on.image.height, on.image.width), Size(height, width)
        if own != size:
            middle = "" if same_proportions(own, size) else ", cut around the middle"
            say(f"note: {request.image.name} is {own}, and drawn upon at {size}{middle}")
        on = canvas.fitted_canvas(on, size)
    elif family.repaints:
        say(f"note: {where.id} repaints a part of a picture (--image, --mask); without one all of it is drawn")
    draw.check_steps(family, sampler, steps)
    if not 0 <= guidance <= MOST:
        raise ConfigError(f"--guidance {guidance:g}: must lie between 0 and {MOST}", f"{usual_guidance:g} is usual for {where.id}")
    composed = compose(family, weighted, embeddings, [*request.prompts, request.negative], sampler)
    triggers = [*(c.trigger for c in contracts if c.trigger), *(e.token for e in embeddings)]
    for note in prompt.notes(family, request.prompts, triggers):  # once the new tokens are known
        say(note)
    negative = composed.texts[request.negative] if request.negative else composed.unconditional
    wanted = list(product(range(len(request.prompts)), range(request.seed, request.seed + request.count)))
    pairs, seeds = [(composed.texts[request.prompts[p]], negative) for p, _ in wanted], [seed for _, seed in wanted]
    batch, before = request.batch or draw.at_once(height, width), 0 if request.replace else names.used(request.out)
    beside = {name: path.name for name, path in (("image", request.image), ("mask", request.mask)) if path}
    beside |= {"vae": where.vae_id} if where.vae_id else {}
    written: list[dict[str, Any]] = []
    with bar("drawing", len(wanted)) as advance:

        def drawn(start: int) -> Iterable[Image.Image]:
            some = slice(start, start + batch)
            how = steps, guidance, height, batch, width
            return draw.draw(family, composed.pipeline, pairs[some], seeds[some], *how, lambda done: advance(start + done), on)

        images = chain.from_iterable(drawn(start) for start in range(0, len(wanted), batch))
        for (p, seed), image in zip(wanted, images, strict=True):
            parameters = {
                "prompt": request.prompts[p],
                "negative": request.negative,
                "seed": seed,
                "steps": steps,
                "guidance": guidance,
                "scheduler": sampler,
                "base": where.id,
                "adapters": {path.name: weight for path, weight in chosen},
                "embeddings": [e.token for e in embeddings],
            } | beside
            path = request.out / names.picture(before + p, seed)
            with nullcontext(path) if request.replace else names.claimed(path) as mine:
                draw.save_png(image, mine, parameters)
                written.append({"path": str(mine)} | parameters)
    say(f"wrote {names.span([Path(w['path']) for w in written])}")
    return written


def sides(family: Family, request: Request, usual: int, on: Canvas | None = None) -> tuple[int, int]:
    """Width and height in pixels; in the proportions of a picture that is drawn upon, where they are not given.

    Raises:
        ConfigError: one that the base cannot draw, by the flag that said it.
    """
    if on and not (request.width or request.height):
        draw.check_side(family, request.resolution or usual)
        size = canvas.size_like(*on.image.size, request.resolution or usual, draw.multiple_of(family))
        return size.width, size.height
    both, out = request.resolution or usual, []
    for flag, given in (("--width", request.width), ("--height", request.height)):
        draw.check_side(family, given or both, flag if given else "--resolution")
        out.append(given or both)
    return out[0], out[1]


def grid(out: Path, pictures: Sequence[Mapping[str, Any]], count: int, say: Callable[[str], None]) -> Path:
    """Writes a sheet of pictures that `generate` drew, a row of `count` for each prompt, and returns its path."""
    rows = [pictures[i : i + count] for i in range(0, len(pictures), count)]
    if note := lettering.note(row[0]["prompt"] for row in rows):
        say(note)
    sheet = draw.sheet([(row[0]["prompt"], [draw.open_png(p["path"]) for p in row]) for row in rows])
    with names.claimed(out / names.grid(Path(pictures[0]["path"]))) as path:
        draw.save_png(sheet, path, {})
    say(f"wrote {path}")
    return path
