"""Attacks on the commands and the readers: `python scripts/attack.py kills --budget 10 --seed 1`, or any other name that --help lists."""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from attacks import concurrency, corpus, damage, figures, folders, fuzz, kills, readers, resources, scenes, trial
from attacks.ledger import Ledger

FAILURES = Path("attack-failures")
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


ATTACKS: dict[str, tuple[Callable[..., None], str]] = {
    "kills": (
        partial(kills.attack, hows=kills.KILLS),
        "End each command before and after each of its writes; the same again must leave the same bytes.",
    ),
    "faults": (partial(kills.attack, hows=kills.FAULTS), "Let the system refuse each write: disk full, input/output error, no permission."),
    "damage": (damage.attack, "Damage a file of a run or of the cache; the command again must train on no damaged number."),
    "resources": (resources.attack, "Take rights, disk, open files, memory, threads or streams away."),
    "concurrency": (concurrency.attack, "Run commands beside each other, with one cache or one folder."),
}


def _command(name: str) -> None:
    @app.command(name, help=ATTACKS[name][1])
    def command(
        budget: Budget = 5, seed: Seed = 0, out: Out = FAILURES, only: Only = None, most: Most = None, record: Record = False
    ) -> None:
        ledger = Ledger(name, seed, out, budget)
        with _place() as place:
            ATTACKS[name][0](ledger, place, only=only, most=most)
        _ended(ledger, record)


for name in ATTACKS:
    _command(name)


@contextlib.contextmanager
def _place(full: bool = False, blind: bool = True) -> Iterator[scenes.Place]:
    """A folder of the trials' own, that is gone afterwards; `full` with all that readers need."""
    root = kills.folder()
    try:
        with fuzz.watched(blind), scenes.quiet():
            place = scenes.warm(root)
            if full:
                folders.prepare(place)
        yield place
    finally:
        shutil.rmtree(root, ignore_errors=True)


@app.command("fuzz")
def fuzzed(
    budget: Budget = 5, seed: Seed = 0, out: Out = FAILURES, only: Only = None, most: Most = None, record: Record = False,
    blind: Annotated[bool, typer.Option("--blind", help="without atheris: more inputs, fewer surprises")] = False,
) -> None:  # fmt: skip
    """Feed every reader inputs that were made worse; guided by coverage, if atheris is installed."""
    ledger = Ledger("fuzz", seed, out, budget)
    with _place(full=True, blind=blind) as place:
        kinds = readers.kinds(place)
        fuzz.attack(ledger, place, [kinds[only]] if only else [*kinds.values()], most, blind)
    _ended(ledger, record)


@app.command("corpus")
def hostile(
    folder: Annotated[list[Path] | None, typer.Option("--folder", help="more hostile files")] = None,
    budget: Budget = 5, seed: Seed = 0, out: Out = FAILURES, record: Record = False,
) -> None:  # fmt: skip
    """Let every reader read every hostile file that its name fits: those that tests/hostile.py makes, and of --folder."""
    ledger = Ledger("corpus", seed, out, budget)
    with _place(full=True) as place:
        corpus.attack(ledger, place, readers.kinds(place), folder or [])
    _ended(ledger, record)


@app.command("repeat")
def repeat(kind: Annotated[str, typer.Argument(help="kind of input")], file: Annotated[Path, typer.Argument(help="a kept input")]) -> None:
    """Read one kept input again, and show what comes of it."""
    with _place(full=True) as place:
        read = readers.kinds(place)[kind].read
        scratch = place.root / "scratch"
        scratch.mkdir()
        outcome = trial.fork(partial(_read, read, scratch, file.read_bytes()), limit=60)
    print(f"{outcome.kind}, {outcome.seconds:.1f} s, {outcome.peak / 1e6:.0f} MB\n{outcome.text}\n{outcome.output}")


def _read(read: Callable[[Path, bytes], object], scratch: Path, data: bytes) -> None:
    fuzz.guard()
    read(scratch, data)


@app.command("report")
def report() -> None:
    """Write the tables of docs/reliability.md."""
    figures.report()


if __name__ == "__main__":
    app()
