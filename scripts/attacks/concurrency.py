"""Commands beside each other: one cache, one folder, and what tidies up while others run."""

import random
import time
from collections.abc import Sequence
from functools import partial

from . import compare, kills, scenes, trial
from .compare import Whole
from .ledger import Ledger
from .scenes import LORA, SCENES, Place

BUSY = "is writing a run there"
TIDY = (
    ("cache", "prune", "--max-size", "0"),
    ("data", "cache", "--prune"),
    ("clean", "--yes", "{work}"),
    ("cache", "ls"),
    ("clean", "--yes", "--whole", "{work}/out"),
)


def attack(ledger: Ledger, place: Place, only: str | None = None, most: int | None = None) -> None:
    """Rounds of each kind in turn, until the budget is spent."""
    dice = random.Random(ledger.seed)  # noqa: S311
    whole = scenes.undisturbed(place, SCENES["lora"])
    rounds = {"one cache": one_cache, "one folder": one_folder, "tidied meanwhile": tidied}
    tried = 0
    while ledger.open() and tried != most:
        for name in rounds:
            if only in (None, name):
                place.clear()
                began = time.monotonic()
                wrong = rounds[name](place, whole, dice)
                ledger.count(name, "as alone" if not wrong else "otherwise", not wrong, time.monotonic() - began)
                if wrong:
                    ledger.fail(name, f"round {tried} {wrong[:40]}", wrong)
        tried += 1


def started(place: Place, words: Sequence[str], dice: random.Random) -> trial.Running:
    time.sleep(dice.uniform(0, 0.1))
    return trial.Running(partial(trial.command, place.words(tuple(words))))


def bad(outcome: trial.Outcome, busy: bool = False) -> str:
    """What is wrong with the end of a command; a refusal only where it says that another one is at work."""
    if outcome.kind == trial.OK or (busy and outcome.kind == trial.REFUSED and BUSY in outcome.output):
        return "Traceback in its output" if "Traceback" in outcome.output else ""
    return f"{outcome.kind}: {outcome.text}\n{outcome.output[-2000:]}"


def one_cache(place: Place, whole: Whole, dice: random.Random) -> str:
    """Three runs and an encoding ahead, each in a folder of its own, with one empty cache: each ends as if alone."""
    outs = [f"out{i}" for i in range(3)]
    running = [started(place, (*LORA, "--out", f"{{work}}/{out}"), dice) for out in outs]
    running.append(started(place, SCENES["data cache"].words, dice))
    ends = [bad(one.end()) for one in running]
    wrong = [text for text in ends if text]
    for out in outs:
        wrong += [t for t in whole.differences(compare.tree(place.work / out), _bytes) if not t.startswith("summary.json says")]
    return "; ".join(wrong)


def _bytes(name: str) -> bool:
    return name.endswith((".safetensors", ".png", "metrics.jsonl"))


def one_folder(place: Place, whole: Whole, dice: random.Random) -> str:
    """Three runs in one folder: one writes, the others say so, or find it finished."""
    ends = [one.end() for one in [started(place, LORA, dice) for _ in range(3)]]
    wrong = [text for text in (bad(end, busy=True) for end in ends) if text]
    wrong += ["none of them ended well"] if not any(end.kind == trial.OK for end in ends) else []
    return "; ".join(wrong + whole.differences(compare.tree(place.work / "out")))


def tidied(place: Place, whole: Whole, dice: random.Random) -> str:
    """A run, perhaps one that was killed before, while everything is tidied up round it."""
    if dice.random() < 0.5:
        trial.fork(partial(trial.command, place.words(LORA)), kill_after=dice.uniform(0.1, 0.6))
    run = started(place, LORA, dice)
    wrong = []
    until = time.monotonic() + dice.uniform(0.3, 1)
    while time.monotonic() < until:
        words = dice.choice(TIDY)
        outcome = started(place, words, dice).end()
        fine = outcome.kind in trial.SURVIVED and "Traceback" not in outcome.output
        wrong += [] if fine else [f"{words}: {outcome.kind} {outcome.text}\n{outcome.output[-2000:]}"]
    wrong += [text] if (text := bad(run.end())) else []
    if not (place.work / "out").exists():  # removed after it ended
        return "; ".join(wrong)
    again = place.run(LORA)
    wrong += [f"again: {text}"] if (text := bad(again)) else []
    return "; ".join([*wrong, *(t for t in whole.differences(compare.tree(place.work / "out")) if kills.is_result(t.split(" ")[0]))])
