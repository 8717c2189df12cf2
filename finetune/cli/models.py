"""`ft models`: the bases the package knows, and which of them are on this disk."""

from typing import Annotated

import typer

from finetune.errors import AccessError


def command(
    path: Annotated[str | None, typer.Option("--path", help="print the folder of one base", metavar="NAME", show_default=False)] = None,
    download: Annotated[
        str | None, typer.Option("--download", help="download one base now, and print its folder", metavar="NAME", show_default=False)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the known bases and what is in the local cache."""
    from finetune import cli
    from finetune.families import source
    from finetune.families.spec import BASES

    if download is not None:
        folder = source.resolve(download).folder
        cli.emit({"folder": str(folder)}) if json_ else print(folder)
        return
    if path is not None:
        known = BASES.get(path)
        if known and known.hub and not source.cached(known.hub):
            raise AccessError(f"--path {path}: not in the local cache", f"`ft models --download {path}` downloads it")
        folder = source.resolve(path).folder
        cli.emit({"folder": str(folder)}) if json_ else print(folder)
        return
    rows = [{"name": n, "hub": b.hub, "about": b.about, "local": b.hub is None or source.cached(b.hub)} for n, b in BASES.items()]
    if json_:
        cli.emit({"bases": rows})
        return
    for row in rows:
        print(f"{row['name']:<10} {'here' if row['local'] else 'hub ':<5} {row['hub'] or 'ships with the package':<46} {row['about']}")
