"""`ft cache`: what lies in the cache, and how it is kept small."""

import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from finetune import files
from finetune.cli.clean import in_bytes
from finetune.errors import unbroken
from finetune.results import stored

app = typer.Typer(help="List the cache, and keep it small: latents, captions, class pictures, unpacked bases.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.command("ls")
def ls(json_: Json = False) -> None:
    """List what lies in the cache ($FT_CACHE), the longest unused first, with the process that uses it."""
    from finetune import cli

    there = stored.entries()
    rows = _rows(there)
    if json_:
        cli.emit({"folder": str(files.cache_root()), "bytes": sum(e.size for e in there), "entries": rows})
        return
    for row in rows:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["used"]))
        holder = f"; in use: {row['in_use']}" if row["in_use"] else ""
        print(unbroken(f"{row['kind']:<14} {in_bytes(row['bytes']):>9}  {used}  {row['name'][:12]:<12}  {row['about']}{holder}"))
    print(unbroken(f"{in_bytes(sum(e.size for e in there))} in {files.cache_root()}"))


@app.command("prune")
def prune(
    most: Annotated[str, typer.Option("--max-size", help="what may stay, such as 10GB; 0 is nothing", metavar="SIZE", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would go")] = False,
    json_: Json = False,
) -> None:
    """Remove what was not used for the longest time until no more than --max-size stays; never what a running run uses. All of it is
    made again when a run needs it. `ft data cache --prune` removes what no run's folder refers to."""
    from finetune import cli

    limit = stored.size_of(most)
    goes, stays = stored.shrunk(limit)
    if not dry_run:
        for entry in goes:
            stored.remove(entry)
    if json_:
        cli.emit({"removed": [] if dry_run else _rows(goes), "can_go": _rows(goes) if dry_run else [], "bytes_left": stays})
        return
    for row in _rows(goes):
        print(
            unbroken(f"{row['kind']:<14} {in_bytes(row['bytes']):>9}  {row['name'][:12]:<12}  {row['about'] if dry_run else ''}".rstrip())
        )
    print(f"{'would free' if dry_run else 'freed'} {in_bytes(sum(e.size for e in goes))}; {in_bytes(stays)} stay")
    if stays > limit:
        print("the rest is used by runs that are running: `ft cache ls`", file=sys.stderr)


def _rows(entries: Sequence[stored.Entry]) -> list[dict[str, Any]]:
    """One for each group, in the order of their last use; `used` is in seconds since 1970."""
    rows: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        first = {"kind": entry.kind, "name": entry.group.name, "about": stored.about(entry), "bytes": 0, "used": 0.0, "in_use": None}
        row = rows.setdefault(entry.group, first)
        row |= {"bytes": row["bytes"] + entry.size, "used": max(row["used"], entry.used), "in_use": row["in_use"] or entry.holder}
    return sorted(rows.values(), key=lambda row: float(row["used"]))
