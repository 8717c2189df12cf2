"""Attacks on the commands and the readers: `python scripts/attack.py kills --budget 10 --seed 1`, or any other name that --help lists."""

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent))

from attacks import figures, fuzz, kills, readers, scenes
from attacks.ledger import Ledger

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
Budget = Annotated[float, typer.Option("--budget", help="minutes")]
Seed = Annotated[int, typer.Option("--seed", help="everything random is a function of it")]
Out = Annotated[Path, typer.Option("--out", help="where failing inputs are kept, with their tracebacks")]
Only = Annotated[str | None, typer.Option("--only", help="one scene or kind")]
Most = Annotated[int | None, typer.Option("--most", help="trials at most")]
Record = Annotated[bool, typer.Option("--record", help="add the figures to docs/reliability.json")]


def _ended(ledger: Ledger, record: bool) -> None:
    ledger.print()
    if record:
        figures.add(ledger)
    if ledger.failures:
        raise typer.Exit(1)


def _disturbed(name: str) -> None:
    @app.command(name)
    def command(
        budget: Budget = 5, seed: Seed = 0, out: Out = Path("attack-failures"), only: Only = None, most: Most = None, record: Record = False
    ) -> None:
        ledger = Ledger(name, seed, out, budget)
        kills.attack(ledger, scenes.warm(kills.folder(None)), kills.ways(name), only, most)
        _ended(ledger, record)

    command.__doc__ = {
        "kills": "End each command before and after each of its writes; the same command again must leave the same bytes.",
        "faults": "Let the system refuse each write: disk full, input/output error, no permission.",
    }[name]


_disturbed("kills")
_disturbed("faults")


@app.command("fuzz")
def fuzzed(
    budget: Budget = 5, seed: Seed = 0, out: Out = Path("attack-failures"), only: Only = None, most: Most = None, record: Record = False
) -> None:
    """Feed every reader inputs that were made worse; guided by coverage, if atheris is installed."""
    ledger = Ledger("fuzz", seed, out, budget)
    with fuzz.watched(), scenes.quiet():
        place = scenes.warm(kills.folder(None))
        readers.prepare(place)
    kinds = readers.kinds(place)
    fuzz.attack(ledger, place, [kinds[only]] if only else [*kinds.values()], most)
    _ended(ledger, record)


@app.command("repeat")
def repeat(kind: Annotated[str, typer.Argument(help="kind of input")], file: Annotated[Path, typer.Argument(help="a kept input")]) -> None:
    """Read one kept input again, and show what comes of it."""
    place = scenes.warm(kills.folder(None))
    readers.prepare(place)
    trials = fuzz.Trials(readers.kinds(place)[kind], place, Ledger("fuzz", 0, file.parent, 1))
    print(trials.read(file.read_bytes()))


@app.command("report")
def report() -> None:
    """Write the tables of docs/reliability.md."""
    figures.report()


if __name__ == "__main__":
    app()
