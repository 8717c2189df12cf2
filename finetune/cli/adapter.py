"""`ft adapter`: look into adapter files, convert them, prove that they work."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.errors import plain

app = typer.Typer(help="Inspect, convert, average and verify adapter files.", no_args_is_help=True)
File = Annotated[Path, typer.Argument(metavar="FILE", help="adapter file, or PEFT folder", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
LAYOUTS = ("kohya", "diffusers", "peft")


@app.command("inspect")
def inspect(
    file: File, norms: Annotated[bool, typer.Option("--norms", help="also read the tensors, and show each block's change")] = False,
    json_: Json = False,
) -> None:  # fmt: skip
    """Method, layout, family, ranks, trigger, base, and problems; reads the header alone unless norms are asked for."""
    from finetune import cli
    from finetune.adapters.inspect import inspect as look

    report = look(file.expanduser(), norms)
    if json_:
        cli.emit(report.facts())
    else:
        print(plain(report.text()))


@app.command("convert")
def convert(
    file: File,
    to: Annotated[str, typer.Option("--to", help="kohya, diffusers or peft", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="where to write (beside the file)", show_default=False)] = None,
    family: Annotated[str | None, typer.Option("--family", help="where the keys do not tell", show_default=False)] = None,
) -> None:
    """Write the same adapter in another layout; what the layout cannot hold is refused."""
    from finetune.errors import ConfigError
    from finetune.families.spec import FAMILIES

    families = [f.name for f in FAMILIES]
    if to not in LAYOUTS:
        raise ConfigError(f"--to {to}: no such layout", f"choose from {', '.join(LAYOUTS)}")
    if family is not None and family not in families:
        raise ConfigError(f"--family {family}: no such family", f"choose from {', '.join(families)}")
    from finetune.adapters.convert import convert as write

    print(write(file.expanduser(), to, out.expanduser() if out else None, family))


@app.command("average")
def average(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run with optim.ema_posthoc", show_default=False)],
    length: Annotated[float, typer.Option("--length", help="of the average, as a share of the run: 0.01 to 0.25", show_default=False)],
    name: Annotated[str | None, typer.Option("--name", help="of the file (the run's and the length)", show_default=False)] = None,
) -> None:
    """Write the average of a run's weights over a length that is chosen now (Karras et al. 2024)."""
    from finetune.training.average import write

    for path in write(run.expanduser(), length, name).values():
        print(path)


@app.command("verify")
def verify(
    file: File,
    base: Annotated[
        str | None, typer.Option("--base", help="base to load it into (the one that the file names)", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Load it into the real pipeline; say how many modules landed and how large the effect is."""
    from finetune import cli
    from finetune.sampling.verify import verify as prove

    verdict = prove(file.expanduser(), base)
    if json_:
        cli.emit(verdict.facts())
        return
    print(f"landed   {verdict.landed} of {verdict.modules} modules")
    print(f"effect   {verdict.effect:.3%} of the denoiser's answer, at strength 1")
    if verdict.text_effect is not None:
        print(f"text     {verdict.text_effect:.3%} of the encoded prompt")
    same = f"the same within {verdict.diffusers:.1e}" if verdict.diffusers is not None else plain(verdict.note)
    print(f"diffusers {same}")
