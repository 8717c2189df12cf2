"""`ft data`: check pictures and captions, show what training sees of them, caption them, encode them ahead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune import files
from finetune.cli import complete, flags, present, streams
from finetune.cli.train import any_job
from finetune.config import Job
from finetune.errors import ConfigError, DataError, unbroken
from finetune.run_folder import RunFolder

app = typer.Typer(help="Check, show, caption and encode pictures before training.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="recipe whose data it is; flags win over it",
        show_default=False,
        metavar="RECIPE",
        autocompletion=complete.known_recipes,
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="any setting: section.key=value", metavar="TEXT", show_default=False)]


@contextmanager
def _phase(name: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, as a run has."""
    from finetune.training.tracking import Tracker

    with Tracker(Path(), active=True).phase(name, total) as tick:
        yield tick


@app.command("check")
@flags.with_flags(flags.DATA)
def check(
    *,
    recipe: Recipe = None,
    set_: Set = None,
    vae: Annotated[
        str | None,
        typer.Option(
            "--vae", help="base whose autoencoder to try on these pictures; or a run of `ft vae`", metavar="BASE|RUN", show_default=False
        ),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="with --vae, where to draw the worst", metavar="FILE", show_default=False)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 3 on warnings too")] = False,
    json_: Json = False,
    **given: Any,
) -> None:
    """Say what is wrong with pictures and captions before any model is loaded; exit with 3 on errors."""
    if sheet and not vae:
        raise ConfigError("--sheet: needs --vae, whose worst pictures it shows")
    own = vae and not given.get("base") and not RunFolder(files.home(vae)).record.is_file()  # a run's is tried in the job's base
    job = _job(given | ({"base": vae} if own else {}), recipe, set_)
    from finetune import cli
    from finetune.sampling import draw
    from finetune.training import dataset

    if sheet:
        draw.check_sheet(files.home(sheet), "--sheet")
    report, drawn = dataset.checked(job, vae, _phase)
    if json_:
        cli.emit(report.data())
    else:
        print("\n".join(map(unbroken, dataset.lines(report))))
    if sheet and drawn:
        draw.save_png(drawn, files.home(sheet), {})
        streams.say(f"wrote {sheet}")
    errors, warnings = report.count("error"), report.count("warning")
    if errors or (strict and warnings):
        raise DataError(f"{errors} errors, {warnings} warnings", "each is named above" if not json_ else "")


@app.command("preview")
@flags.with_flags(flags.DATA)
def preview(
    *,
    recipe: Recipe = None,
    set_: Set = None,
    out: Annotated[Path, typer.Option("--out", help="the sheet")] = Path("preview.png"),
    count: Annotated[int, typer.Option("--count", min=1, max=1000, help="pictures, evenly taken")] = 24,
    json_: Json = False,
    **given: Any,
) -> None:
    """Draw a sheet of the crops that training sees, with captions and buckets."""
    job = _job(given, recipe, set_)
    from finetune import cli
    from finetune.sampling import draw
    from finetune.training import dataset

    draw.check_sheet(files.home(out), "--out")
    page, total = dataset.crops(job, count)
    draw.save_png(page, files.home(out), {})
    streams.say(f"{min(count, total)} of {total} pictures")
    cli.emit({"sheet": str(out), "pictures": total, "shown": min(count, total)}) if json_ else print(out)


@app.command("cache")
@flags.with_flags(flags.DATA)
def cache(
    *,
    recipe: Recipe = None,
    set_: Set = None,
    prune: Annotated[bool, typer.Option("--prune", help="instead, remove the latents and captions that no run's folder refers to")] = False,
    json_: Json = False,
    **given: Any,
) -> None:
    """Encode pictures and captions ahead of a run, which then begins at once."""
    from finetune import cli

    if prune:
        from finetune.data.prune import prune as remove

        gone = remove()
        facts = {"rows": gone.rows, "bytes": gone.size, "runs": gone.runs}
        line = f"removed {gone.rows} entries, {gone.size / 1e6:.1f} MB; what {gone.runs} runs refer to stays"
    else:
        job = _job(given, recipe, set_)
        from finetune.training import dataset

        facts = dataset.encode_ahead(job, _phase, streams.say)
        line = f"encoded: {facts['pictures']} pictures, variants counted, and {facts['captions']} captions"
    cli.emit(facts) if json_ else print(line)


@app.command("caption")
def caption(
    *,
    pictures: flags.Pictures = None,
    data: Annotated[str | None, typer.Option("--data", help="folder of pictures", metavar="PATH", show_default=False)] = None,
    model: Annotated[str, typer.Option("--model", help="image-to-text model: Hub id or folder", show_default=False)],
    prompt: Annotated[str | None, typer.Option("--prompt", help="what to ask a model that can be asked", show_default=False)] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="put in front of every caption")] = "",
    batch: Annotated[int, typer.Option("--batch", min=1, help="pictures at once")] = 1,
    tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="longest caption, in the model's tokens")] = 60,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace captions that are there; they are kept otherwise")] = False,
    json_: Json = False,
) -> None:
    """Write a caption beside every picture that has none. The same command again goes on where it stopped."""
    from finetune import cli

    folder = flags.one_place(pictures, data)
    if folder is None:
        raise ConfigError("--data: missing", "for example ft data caption ./imgs --model MODEL")
    present.check_pictures_place(Path(folder))
    from finetune.training import dataset

    written, kept = dataset.caption(files.home(folder), model, prompt, tokens, batch, prefix, overwrite, _phase)
    cli.emit({"written": written, "kept": kept}) if json_ else print(f"{written} captions written, {kept} kept")


def _job(given: dict[str, Any], recipe: Path | None, sets: list[str] | None) -> Job:
    return any_job(flags.nested_settings(flags.DATA, given), recipe, sets or [], flags.names(flags.DATA))
