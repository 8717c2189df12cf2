"""A command is ended, or refused by the system, at every one of its writes; the same command again must end as if nothing had been."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from . import compare, scenes, trial
from .compare import Whole
from .events import AFTER, BEFORE, ERRORS, Events
from .ledger import Ledger
from .scenes import Place, Scene

SAME, LOST, OTHERWISE, LEFT, TRACEBACK = "as undisturbed", "lost", "another record", "left behind", "traceback"
THERE = "is there already"  # what `ft adapter convert` says of its own, whole, result
KILLS, FAULTS = (BEFORE, AFTER), tuple(ERRORS)
DISTURBED = (trial.KILLED, trial.OK, trial.REFUSED)


def attack(ledger: Ledger, place: Place, hows: Sequence[str], only: str | None = None, most: int | None = None) -> None:
    """Every event of every scene in every way, in random order, until the budget is spent; then again with kills at random times."""
    dice = random.Random(ledger.seed)  # noqa: S311
    chosen = [scene for name, scene in scenes.SCENES.items() if only in (None, name)]
    wholes = {scene.name: scenes.undisturbed(place, scene) for scene in chosen}
    points = [(s, k, how) for s in chosen for k in range(1, events(place, s) + 1) for how in hows]
    ledger.note(f"{len(points)} points: {', '.join(f'{s.name} {sum(p[0] is s for p in points)}' for s in chosen)}")
    dice.shuffle(points)
    tried = 0
    for scene, at, how in points:
        if not ledger.open() or tried == most:
            return
        tried += 1
        with at_event(place, scene, at, how) as (outcome, name):
            judge(ledger, place, scene, wholes[scene.name], outcome, f"{how} event {at} {name}")
    while BEFORE in hows and ledger.open() and chosen and most is None:
        scene = dice.choice(chosen)
        if dice.random() < 0.02 and scene.name != "lora":  # whose samples take a process of its own as many steps as ever
            outcome, what = by_signal(place, scene, dice)
        else:
            place.set_up(scene)
            after = dice.uniform(0.01, 0.6)
            outcome = trial.fork(partial(trial.command, place.words(scene.words)), kill_after=after)
            what = f"SIGKILL after {after:.3f} s"
        judge(ledger, place, scene, wholes[scene.name], outcome, what)


def events(place: Place, scene: Scene) -> int:
    """How many write events an undisturbed command has."""
    return len(names(place, scene))


def names(place: Place, scene: Scene) -> list[str]:
    place.set_up(scene)

    def work() -> list[str]:
        watched = Events(place.work).watch()
        trial.command(place.words(scene.words))
        return watched.names

    outcome = trial.fork(work)
    assert outcome.kind == trial.OK and isinstance(outcome.value, list), outcome
    return outcome.value


@contextlib.contextmanager
def at_event(place: Place, scene: Scene, at: int, how: str) -> Iterator[tuple[trial.Outcome, str]]:
    """The command with something done to it at one of its events, and that event's name."""
    place.set_up(scene)
    seen = place.root / "event"
    seen.unlink(missing_ok=True)

    def work() -> None:
        watched = Events(place.work, at, how)
        real = os._exit

        def leave(code: int) -> None:
            note()
            real(code)

        def note() -> None:
            handle = os.open(seen, os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(handle, watched.names[min(at, len(watched.names)) - 1].encode("utf-8", "replace") if watched.names else b"")

        if how in (BEFORE, AFTER):
            os._exit = leave  # type: ignore[assignment]
        watched.watch()
        try:
            trial.command(place.words(scene.words))
        finally:
            os._exit = real
            note()

    outcome = trial.fork(work)
    yield outcome, seen.read_text(encoding="utf-8") if seen.exists() else ""


def by_signal(place: Place, scene: Scene, dice: random.Random) -> tuple[trial.Outcome, str]:
    """The real command in a process of its own, and a signal at a random time."""
    place.set_up(scene)
    number, after = dice.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]), dice.uniform(0.2, 8)
    words = [sys.executable, "-m", "finetune", *place.words(scene.words)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    time.sleep(after)
    process.send_signal(number)
    try:
        said = process.communicate(timeout=60)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return trial.Outcome(trial.HANG, "60 s after the signal"), f"{number.name} after {after:.2f} s"
    kind = trial.FOREIGN if "Traceback" in said else trial.OK if process.returncode == 0 else trial.KILLED
    return trial.Outcome(kind, said if kind == trial.FOREIGN else f"exit {process.returncode}", said), f"{number.name} after {after:.2f} s"


def judge(ledger: Ledger, place: Place, scene: Scene, whole: Whole, outcome: trial.Outcome, what: str) -> None:
    """Counts the trial; it survived if the disturbed command ended well, and the same one again as if undisturbed."""
    end, wrong = verdict(place, scene, whole, outcome)
    ledger.count(scene.name, end, end == SAME, outcome.seconds, outcome.peak)
    if wrong:
        ledger.fail(scene.name, what, f"{end}: {wrong}")


def verdict(place: Place, scene: Scene, whole: Whole, outcome: trial.Outcome) -> tuple[str, str]:
    """What the disturbed command and the same one again came to, and what is wrong with it."""
    if outcome.kind not in DISTURBED or (outcome.text.startswith("SIG") and outcome.text != "SIGKILL"):
        return TRACEBACK, f"{outcome.kind}: {outcome.output[-2000:]}\n{outcome.text}"
    if "Traceback" in outcome.output:
        return TRACEBACK, outcome.output[-3000:]
    again = place.run(scene.words)
    if again.kind != trial.OK and THERE not in again.output:
        return LOST, f"the command again: {again.kind}: {again.output[-1500:]}\n{again.text}\nbefore it: {outcome.kind} {outcome.text}"
    made = compare.tree(place.work / scene.out)
    if scene.out == "cache":  # rows may lie in other shards
        made, whole = (dict.fromkeys(whole.names, b"") if made else {}), Whole({}, {}, whole.names)
    differences = whole.differences(made)
    if lost := [text for text in differences if is_result(text.split(" ")[0])]:
        return LOST, "; ".join(lost)
    if differences:
        return OTHERWISE, "; ".join(differences)
    if there := compare.left(place.work / "out"):
        return LEFT, ", ".join(there)
    if there := left_in_cache(place):
        return LEFT, f"in the cache, and `ft clean` does not remove it: {', '.join(there)}"
    return SAME, ""


def is_result(name: str) -> bool:
    """Whether somebody uses this file: not a checkpoint, a record of the steps, or a card."""
    return not name.startswith("checkpoints/") and name not in ("metrics.jsonl", "README.md")


def left_in_cache(place: Place) -> list[str]:
    """What neither a later run nor, two hours on, `ft clean` removes of what was left in the cache."""
    if not compare.left(place.cache) or not (place.work / "out" / "run.yaml").exists():
        return []
    old = time.time() - 7200
    for name in compare.left(place.cache):
        os.utime(place.cache / name, (old, old), follow_symlinks=False)
    place.run(("clean", "--yes", "{work}/out"))
    return compare.left(place.cache)


def folder() -> Path:
    """Where trials are made: in memory, where the system has such a place."""
    memory = Path("/dev/shm")  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="attack-", dir=memory if os.access(memory, os.W_OK) else None))
