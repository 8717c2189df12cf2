"""`ft clean`: frees what runs left and nobody needs, after showing it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune import files
from finetune.cli import complete
from finetune.errors import ConfigError, unbroken
from finetune.results import clean, stored

RUNS = Path("runs")  # where they lie unless --out says otherwise


def command(
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN", help="folders of runs, or folders that hold some (runs)", show_default=False, autocompletion=complete.run_folders
        ),
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="remove all that these runs wrote, what they learned too")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="remove without asking")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON object; with --yes or --dry-run")] = False,
) -> None:
    """Free old checkpoints, what killed processes left half-written, or whole runs. Lists them and asks. The newest checkpoint of a run
    stays, and so does what no run of `ft` wrote or what a running one uses."""
    from finetune import cli

    if whole and not places:
        raise ConfigError("--whole: name the runs to remove", "for example ft clean --whole runs/lora")
    findings = clean.look(_runs(places), whole)
    if json_ and findings.items and not (yes or dry_run):
        raise ConfigError("--json: cannot ask", "--yes removes, --dry-run lists")
    if not json_:
        _show(findings)
    if dry_run or not findings.items:
        done = findings
    else:
        if not yes:
            _ask()
        done = clean.remove(findings.items, whole)
        _say_stays(done.stays, json_)
    if json_:
        cli.emit(_facts(done, dry_run))
    elif done is not findings:
        print(f"freed {in_bytes(done.size)}")


def _runs(places: Sequence[Path] | None) -> list[Path]:
    """Those that are named, or those of this folder, of which there may be none."""
    named = [files.home(place) for place in places or ([RUNS] if RUNS.is_dir() else [])]
    folders: dict[Path, None] = {}
    try:
        for place in named:
            folders |= dict.fromkeys(clean.runs(place))
    except clean.NoRuns:
        if places:
            raise
    return list(folders)


def _show(findings: clean.Findings) -> None:
    lines: dict[Path, tuple[str, int]] = {}  # all that goes of a whole run is one line
    for item in findings.items:
        path = item.run if item.kind == "run" and item.run else item.path
        lines[path] = item.kind, item.size + lines.get(path, ("", 0))[1]
    for path, (kind, count) in lines.items():
        print(unbroken(f"{kind:<13} {in_bytes(count):>9}  {path}"))
    _say_stays(findings.stays, False)
    print(f"{in_bytes(findings.size)} can go" if findings.items else "nothing to free")
    if cached := stored.total():
        print(f"the cache holds {in_bytes(cached)} more: `ft cache ls`", file=sys.stderr)


def _say_stays(stays: dict[Path, str], quiet: bool) -> None:
    for path, reason in stays.items() if not quiet else ():
        print(unbroken(f"stays: {path}: {reason}"), file=sys.stderr)


def _ask() -> None:
    """Raises:
    ConfigError: nobody can be asked.
    Abort: the answer is no.
    """
    if not sys.stdin.isatty():
        raise ConfigError("nothing was removed: there is nobody to ask", "--yes removes without asking, --dry-run only lists")
    if not typer.confirm("Remove all of this?", err=True):
        print("nothing was removed", file=sys.stderr)
        raise typer.Exit


def _facts(done: clean.Findings, dry_run: bool) -> dict[str, Any]:
    return {
        "removed": [] if dry_run else [_row(item) for item in done.items],
        "can_go": [_row(item) for item in done.items] if dry_run else [],
        "bytes": done.size,
        "stays": {str(path): reason for path, reason in done.stays.items()},
    }


def _row(item: clean.Removable) -> dict[str, Any]:
    return {"kind": item.kind, "path": str(item.path), "bytes": item.size}


def in_bytes(count: int) -> str:
    """Bytes in words, as disks count them."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= power:
            return f"{count / power:.1f} {unit}"
    return f"{count} B"
