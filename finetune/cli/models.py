"""`ft models`: the bases the package knows, and which of them are on this disk."""

import textwrap
from typing import Annotated, Any

import typer

from finetune.errors import AccessError, ConfigError, unbroken


def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="one base: what there is to know of it", show_default=False)] = None,
    path: Annotated[str | None, typer.Option("--path", help="print the folder of one base", metavar="NAME", show_default=False)] = None,
    download: Annotated[
        str | None, typer.Option("--download", help="download one base now, and print its folder", metavar="NAME", show_default=False)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the known bases and what is in the local cache."""
    from finetune import cli
    from finetune.families import source
    from finetune.families.catalogue import BASES

    if download is not None:
        folder = source.resolve_base(download).folder
        cli.emit({"folder": str(folder)}) if json_ else print(folder)
        return
    if path is not None:
        known = BASES.get(path)
        if known and known.hub and not source.cached(known.hub):
            raise AccessError(f"--path {path}: not in the local cache", f"`ft models --download {path}` downloads it")
        folder = source.resolve_base(path).folder
        cli.emit({"folder": str(folder)}) if json_ else print(folder)
        return
    if name is not None:
        facts = _facts(name)
        cli.emit(facts) if json_ else print("\n".join(map(unbroken, _lines(facts, BASES[name].wording))))
        return
    rows = [{"name": n, "hub": b.hub, "about": b.about, "local": b.hub is None or source.cached(b.hub)} for n, b in BASES.items()]
    if json_:
        cli.emit({"bases": rows})
        return
    names, hubs = (max(len(str(row[column])) for row in rows) for column in ("name", "hub"))
    for row in rows:
        where = "here" if row["local"] else "hub"
        print(f"{row['name']:<{names}}  {where:<4}  {row['hub'] or 'ships with the package':<{hubs}}  {row['about']}")


def _facts(name: str) -> dict[str, Any]:
    """Raises:
    ConfigError: no base has this name.
    """
    from finetune.families import source
    from finetune.families.catalogue import BASES

    if name not in BASES:
        raise ConfigError(f"{name}: is no name of a base", f"the names are {', '.join(BASES)}; --base takes Hub ids and folders too")
    known = BASES[name]
    facts: dict[str, Any] = {"name": name, "about": known.about, "licence": known.licence, "hub": known.hub}
    facts |= {"local": known.hub is None or source.cached(known.hub)}
    if known.names:
        facts |= {"draws": known.names.read_text(encoding="utf-8").splitlines(), "sheet": str(known.sheet)}
    return facts


def _lines(facts: dict[str, Any], about: str) -> list[str]:
    lines = [f"{facts['name']}: {facts['about']}", f"licence: {facts['licence']}"]
    if facts["hub"]:
        where = "here" if facts["local"] else f"not downloaded yet: ft models --download {facts['name']}"
        return [*lines, f"hub: {facts['hub']} ({where})"]
    words = textwrap.fill(", ".join(facts["draws"]), 120, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    lines += [f"draws {len(facts['draws'])} things by these names, {about}:", words]
    return [*lines, f"each of them as it draws it: {facts['sheet']}"]
