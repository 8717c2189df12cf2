"""`ft adapter`: look into adapter files, convert them, prove that they work."""

from pathlib import Path
from typing import Annotated

import typer

from finetune import files
from finetune.cli import complete, present
from finetune.errors import plain, unbroken

app = typer.Typer(help="Inspect, convert, average and verify adapter files.", no_args_is_help=True)
File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="adapter file, PEFT folder, or folder of a run", show_default=False, autocompletion=complete.adapters
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
FORMS = ("kohya", "diffusers", "peft", "full", "svd")
BAD_FILE = 3  # exit code: see finetune/errors.py


@app.command("inspect")
def inspect(
    file: File,
    norms: Annotated[bool, typer.Option("--norms", help="also read the tensors, and show each block's change")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 3 where it lists problems")] = False,
    json_: Json = False,
) -> None:
    """Method, layout, family, ranks, trigger, base, who reads it, and problems; reads the header alone unless norms are asked for."""
    from finetune import cli
    from finetune.adapters.inspect import inspect as look

    report = look(present.adapter(files.home(file)), norms)
    if json_:
        cli.emit(report.facts())
    else:
        print(plain(report.text()))
    if strict and report.problems:
        raise typer.Exit(BAD_FILE)


@app.command("convert")
def convert(
    file: File,
    to: Annotated[str, typer.Option("--to", help="kohya, diffusers, peft, full (whole differences) or svd", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="where to write (beside the file)", show_default=False)] = None,
    family: Annotated[str | None, typer.Option("--family", help="where the keys do not tell", show_default=False)] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="of the LoRA that svd makes", show_default=False)] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="whose weights full and svd need for DoRA and OFT (the file's)", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Write the same adapter in another layout, as whole differences of the weights, or as a LoRA of another rank; what the layout
    cannot hold is refused."""
    import sys

    from finetune import cli
    from finetune.errors import ConfigError
    from finetune.families.catalogue import FAMILIES

    families = [f.name for f in FAMILIES]
    if to not in FORMS:
        raise ConfigError(f"--to {to}: no such layout", f"choose from {', '.join(FORMS)}")
    if family is not None and family not in families:
        raise ConfigError(f"--family {family}: no such family", f"choose from {', '.join(families)}")
    if rank is not None and to != "svd":
        raise ConfigError("--rank: is for --to svd", "leave it out")
    if base is not None and to not in ("full", "svd"):
        raise ConfigError("--base: is for --to full and --to svd", "leave it out")
    base = present.of_drawing([], [], base).base
    path = present.adapter(files.home(file))
    from finetune.sampling.rewrite import rewrite

    written = rewrite(path, to, files.home(out) if out else None, family, rank, base, lambda m: print(m, file=sys.stderr))
    cli.emit({"written": str(written)}) if json_ else print(written)


@app.command("average")
def average(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run with optim.ema_posthoc", show_default=False)],
    length: Annotated[float, typer.Option("--length", help="of the average, as a share of the run: 0.01 to 0.25", show_default=False)],
    name: Annotated[str | None, typer.Option("--name", help="of the file (the run's and the length)", show_default=False)] = None,
    base: Annotated[str | None, typer.Option("--base", help="of a run that was made elsewhere", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Write the average of a run's weights over a length that is chosen now (Karras et al. 2024)."""
    from finetune import cli

    present.check_run_folder(files.home(run))
    from finetune.training.average import write

    written = [str(path) for path in write(files.home(run), length, name, base).values()]
    cli.emit({"written": written}) if json_ else print("\n".join(written))


@app.command("verify")
def verify(
    file: File,
    base: Annotated[
        str | None, typer.Option("--base", help="base to load it into (the one that the file names)", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Load it into the real pipeline; say how many modules landed, how large the effect is, and whether diffusers reads the same. Exits
    with 3 where it does not."""
    from finetune import cli

    base = present.of_drawing([], [], base).base
    path = present.adapter(files.home(file))
    from finetune.sampling.verify import verify as prove

    verdict = prove(path, base)
    if json_:
        cli.emit(verdict.facts())
    else:
        print("\n".join(map(unbroken, verdict.lines())))
    if verdict.differs:
        raise typer.Exit(BAD_FILE)
