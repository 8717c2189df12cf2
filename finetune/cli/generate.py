"""`ft generate`: pictures from prompts and adapters."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli import complete, hardware, present, streams
from finetune.errors import ConfigError
from finetune.families.catalogue import FAMILIES


def _samplers() -> dict[str, None]:
    """What some family's base can be drawn with."""
    names: dict[str, None] = {}
    for spec in FAMILIES:
        names |= dict.fromkeys(spec.samplers)
    return names


def command(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="what to draw; may be given several times", show_default=False)
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="the same, as a flag", show_default=False)] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            help="adapter file, run, or RUN/checkpoints/step-N; :weight if not 1",
            metavar="FILE|RUN",
            show_default=False,
            autocompletion=complete.adapters,
        ),
    ] = None,
    embedding: Annotated[
        list[Path] | None, typer.Option("--embedding", help="embedding file of a new token, or run", metavar="FILE|RUN", show_default=False)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="base (the one that the adapter names)", show_default=False, autocompletion=complete.bases),
    ] = None,
    vae: Annotated[
        Path | None,
        typer.Option(
            "--vae",
            help="another autoencoder: a file or folder, or a run of `ft vae`",
            metavar="FILE|RUN",
            show_default=False,
            autocompletion=complete.autoencoders,
        ),
    ] = None,
    negative: Annotated[str, typer.Option("--negative", help="what to steer away from", show_default=False)] = "",
    scheduler: Annotated[str | None, typer.Option("--scheduler", help=", ".join(_samplers()), show_default=False)] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, max=10_000, help="sampling steps (the adapter's or the family's)", show_default=False)
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", min=0, max=100, help="guidance scale (the same)", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="seed of the first picture; the next has the next")] = 0,
    count: Annotated[int, typer.Option("--count", min=1, max=100_000, help="pictures per prompt")] = 1,
    resolution: Annotated[
        int | None, typer.Option("--resolution", min=16, max=8192, help="side in pixels (the adapter's or the base's)", show_default=False)
    ] = None,
    width: Annotated[int | None, typer.Option("--width", min=16, max=8192, help="in pixels (--resolution)", show_default=False)] = None,
    height: Annotated[int | None, typer.Option("--height", min=16, max=8192, help="in pixels (--resolution)", show_default=False)] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="picture to draw upon, with a base that repaints", metavar="FILE", show_default=False)
    ] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="what of it is repainted: white", metavar="FILE", show_default=False)] = None,
    grid: Annotated[bool, typer.Option("--grid", help="also write one sheet of all pictures")] = False,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="pictures drawn at once (as many as fill 1024x1024 pixels)", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="output folder; what is there stays")] = Path("pictures"),
    json_: Annotated[bool, typer.Option("--json", help="print one JSON object at the end")] = False,
) -> None:
    """Draw pictures with a base and any number of adapters and new tokens."""
    from finetune import cli

    texts = [*(prompts or []), *(prompt or [])]
    if not texts:
        raise ConfigError("--prompt: missing", 'for example ft generate "a tiger"')
    drawn_with = present.of_drawing(adapter or [], embedding or [], base)
    drawn_by = present.autoencoder(vae) if vae else None
    hardware.say_idle_card()
    from finetune.sampling import generate as drawing
    from finetune.training.tracking import Tracker

    request = drawing.Request(
        texts,
        *drawn_with,
        negative,
        scheduler,
        steps,
        guidance,
        seed,
        count,
        resolution,
        batch,
        out,
        width,
        height,
        image,
        mask,
        vae=drawn_by,
    )
    drawn = drawing.generate(request, streams.say, Tracker(out, active=True).drawing)
    sheet = drawing.grid(out, drawn, count, streams.say) if grid else None
    if json_:
        cli.emit({"pictures": drawn, "grid": str(sheet) if sheet else None})
