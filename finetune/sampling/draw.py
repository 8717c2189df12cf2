"""Drawing with a pipeline from fixed seeds, sheets of pictures, and PNGs that carry their parameters."""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from finetune import files, randomness
from finetune.data import decode, lettering
from finetune.data.crop import fitted, to_image, to_plane, to_tensor
from finetune.data.decode import SOFTWARE
from finetune.data.encoded import Text
from finetune.data.file import read_file
from finetune.errors import ConfigError, FinetuneError, line
from finetune.families import inpainting
from finetune.families.family import Family
from finetune.sampling.canvas import Canvas
from finetune.sampling.pipeline import Pipeline, Sampler


def at_once(height: int, width: int | None = None) -> int:
    """Pictures in a batch where nobody says: as many as fill 1024x1024 pixels, at most 16."""
    return min(16, max(1, 1024 * 1024 // (height * (width or height))))


def calls(family: Family) -> int:
    """How often a picture asks the denoiser, by the base's own number of steps."""
    return family.inference()[0] * family.spec.calls


class NotFinite(FinetuneError):
    """What the base answered is no picture: it would be black."""


def multiple_of(family: Family) -> int:
    """Pixels of which the sides of pictures that the base draws are multiples."""
    return math.lcm(family.factor, family.spec.draws)


def check_side(family: Family, side: int, flag: str = "--resolution") -> None:
    """Raises:
    ConfigError: the base can be trained at this side perhaps, but its pipeline draws no such picture.
    """
    if family.edition.longest and side > family.edition.longest:
        raise ConfigError(f"{flag} {side}: {family.source.id} knows no sides of more than {family.edition.longest} pixels", "a smaller one")
    multiple = multiple_of(family)
    if side % multiple:
        below = max(multiple, side // multiple * multiple)
        raise ConfigError(
            f"{flag} {side}: {family.source.id} draws pictures of multiples of {multiple} pixels",
            f"{flag} {below} or {below + multiple}; training alone, without pictures, takes multiples of {family.factor}",
        )


def check_steps(family: Family, sampler: str | None, steps: int, setting: str = "--steps") -> None:
    """Takes the steps without the network: every sampler has other limits, some of which show at the last step alone.

    Raises:
        ConfigError: the sampler cannot take so many, or so few.
    """
    wrong = f"{setting} {steps}: {sampler or family.spec.sampler} cannot take so many, or so few"
    hint = f"{family.inference()[0]} are usual for {family.source.id}"
    try:
        with randomness.global_rng("steps"):  # some samplers add noise
            finite = _walk(family.source.sampler(sampler), steps).isfinite().all()
    except (ValueError, IndexError, RuntimeError, ZeroDivisionError) as e:
        raise ConfigError(f"{wrong}: {line(str(e), 120)}", hint) from e
    if not finite:
        raise ConfigError(wrong, hint)


def _walk(scheduler: Sampler, steps: int) -> torch.Tensor:
    """What a sampler makes of noise where every answer is 0."""
    x = torch.ones(1, 1, 2, 2)
    scheduler.set_timesteps(steps, **({"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}))
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.zeros_like(x), t, scale(x, t)).prev_sample
    return x


@torch.no_grad()
def draw(
    family: Family,
    pipeline: Pipeline,
    prompts: Sequence[tuple[Text, Text]],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    side: int,
    batch: int = 1,
    width: int | None = None,
    advance: Callable[[float], None] = lambda done: None,
    canvas: Canvas | None = None,
) -> list[Image.Image]:
    """One picture for each encoded (prompt, negative) and seed; noise is drawn on the CPU, so every device starts from the same.

    `side` is a square's, or with `width` the height. `advance` is told after each step how many pictures are drawn, parts included.
    A base that repaints does so on `canvas`, of that size; without one all is repainted.

    Raises:
        NotFinite: the denoiser's or the autoencoder's numbers overflowed.
    """
    pipeline.set_progress_bar_config(disable=True)
    out: list[Image.Image] = []
    told = _told(family, canvas, side, width or side)
    for start in range(0, len(seeds), batch):
        rows = [family.prompt(text, negative, guidance) for text, negative in prompts[start : start + batch]]
        latents = pipeline(
            **_stacked(rows),
            **told,
            generator=[randomness.generator(seed, "sample") for seed in seeds[start : start + batch]],
            num_inference_steps=steps,
            height=side,
            width=width or side,
            output_type="latent",
            callback_on_step_end=_telling(advance, start, len(rows), steps),
        ).images
        for one in torch.split(latents, 1):  # an autoencoder takes more memory than a denoiser
            pixels = family.decode(one, side, width or side)[0]
            if not (one.isfinite().all() and pixels.isfinite().all()):
                remedy = "a lower --guidance or weight" + (", or the base's own autoencoder" if family.source.vae else "")
                raise NotFinite(f"the picture of seed {seeds[len(out)]} is black: its numbers overflowed", remedy)
            image = to_image(pixels)
            out.append(canvas.kept(image) if canvas else image)
    return out


def _told(family: Family, canvas: Canvas | None, height: int, width: int) -> dict[str, Any]:
    """What a pipeline is told of a picture to repaint; nothing, where its base draws from noise alone."""
    if not family.repaints:
        return {}
    if canvas is None:
        return inpainting.canvas(family, torch.zeros(1, 3, height, width), torch.ones(1, 1, height, width))
    return inpainting.canvas(family, to_tensor(canvas.image)[None], to_plane(canvas.mask)[None])


def _stacked(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A pipeline's arguments for several pictures; what is no tensor is the same for all."""
    out = dict(rows[0])
    for name, value in rows[0].items():
        if isinstance(value, torch.Tensor):
            out[name] = torch.cat([row[name] for row in rows])
    return out


def _telling(advance: Callable[[float], None], before: int, count: int, steps: int) -> Callable[..., dict[str, Any]]:
    """What a pipeline calls after each step of `count` pictures. Some samplers take a step more than they were asked for."""

    def step(pipeline: Pipeline, index: int, *_: object) -> dict[str, Any]:
        advance(before + count * min(1.0, (index + 1) / steps))
        return {}

    return step


def save_png(image: Image.Image, path: Path, parameters: Mapping[str, Any]) -> None:
    """A PNG whose `parameters` text chunk is JSON."""
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("Software", SOFTWARE)
    info.add_itxt("parameters", json.dumps(dict(parameters), sort_keys=True))
    image.save(buffer, "PNG", pnginfo=info)
    files.write_bytes(path, buffer.getvalue())


def check_sheet(path: Path, flag: str) -> None:
    """Raises:
    ConfigError: what stands in the place of a sheet is no sheet of this program, and would be lost.
    """
    if not path.exists():
        return
    try:
        with Image.open(path) as image:
            ours = (image.info.get("Software"), image.info.get("parameters")) == (SOFTWARE, "{}")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # no picture, or none that Pillow reads
        ours = False
    if not ours:
        raise ConfigError(f"{flag} {path}: is there already, and is no sheet of this program", "choose another name")


def open_png(path: Path | str) -> Image.Image:
    """A picture that `save_png` wrote, RGB.

    Raises:
        DataError: it is missing, or damaged since.
    """
    return decode.decode_picture(read_file(str(path)), str(path)).image


LABEL, GAP, HEAD = 240, 4, 20  # pixels: of the widest label, between pictures, and above columns


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str] = (), side: int = 0) -> Image.Image:
    """Labelled rows of pictures whose longer side becomes `side`, enlarged without smoothing where they are small."""
    pictures = list(chain.from_iterable(images for _, images in rows))
    side = side or max(128, *(max(picture.size) for picture in pictures))
    shown = [[fitted(image, side) for image in images] for _, images in rows]
    fits = list(chain.from_iterable(shown))
    wide, high = max(image.width for image in fits), max(image.height for image in fits)
    label = min(LABEL, math.ceil(max(lettering.length(name) for name, _ in rows))) + 16 if any(name for name, _ in rows) else 0
    head = HEAD if columns else 0
    page = Image.new("RGB", (label + max(map(len, shown)) * (wide + GAP), head + len(rows) * (high + GAP)), "white")
    for x, name in enumerate(columns):
        for text in lettering.wrap(name, wide, 1):
            lettering.write_line(page, (label + x * (wide + GAP) + 2, 2), text)
    for y, images in enumerate(shown):
        top = head + y * (high + GAP)
        lines = lettering.wrap(rows[y][0], label - 8, high // lettering.LINE)
        for i, text in enumerate(lines):
            lettering.write_line(page, (4, top + (high - len(lines) * lettering.LINE) // 2 + i * lettering.LINE), text)
        for x, image in enumerate(images):
            left = label + x * (wide + GAP)
            page.paste(image, (left + (wide - image.width) // 2, top + (high - image.height) // 2))
    return page
