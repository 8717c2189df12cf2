"""`ft generate`: pictures from prompts and adapters."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli import hardware, present
from finetune.errors import ConfigError, plain


def command(
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="what to draw; may be given several times", show_default=False)
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", help="adapter file, with :weight if not 1", metavar="FILE", show_default=False)
    ] = None,
    embedding: Annotated[
        list[Path] | None, typer.Option("--embedding", help="embedding file of a new token", metavar="FILE", show_default=False)
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="base (the one that the adapter names)", show_default=False)] = None,
    negative: Annotated[str, typer.Option("--negative", help="what to steer away from", show_default=False)] = "",
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="ddim, dpm++, euler, euler-a, pndm, ddpm, lcm", show_default=False)
    ] = None,
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
    grid: Annotated[bool, typer.Option("--grid", help="also write one sheet of all pictures")] = False,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="pictures drawn at once (as many as fill 1024x1024 pixels)", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="output folder")] = Path("pictures"),
    json_: Annotated[bool, typer.Option("--json", help="print one JSON object at the end")] = False,
) -> None:
    """Draw pictures with a base and any number of adapters and new tokens."""
    from finetune import cli

    if not prompt:
        raise ConfigError("--prompt: missing", 'for example --prompt "a tiger"')
    present.of_drawing(adapter or [], embedding or [], base)
    hardware.say_idle_card()
    from finetune.sampling.generate import Request, generate

    request = Request(
        prompt, adapter or [], embedding or [], base, negative, scheduler, steps, guidance, seed, count, resolution, grid, batch, out
    )
    drawn = generate(request, lambda text: print(plain(text), file=sys.stderr))
    if json_:
        cli.emit({"pictures": drawn})
