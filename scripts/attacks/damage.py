"""One file of a finished or half-finished run, or of the cache, is damaged: the command again trains on no damaged number."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import compare, kills, scenes, trial
from .compare import Whole
from .events import AFTER
from .ledger import Ledger
from .scenes import BARE, LORA, Place, Scene

AVERAGED = (*BARE, "--set", "optim.ema_posthoc=true", "--set", "optim.ema=0.9")
MORE = ("--steps", "4")
WRONG = "another result"


@dataclass(frozen=True)
class State:
    """How far a run came before the damage, and the command after it."""

    name: str
    first: tuple[str, ...]
    then: tuple[str, ...]
    stopped: bool = False  # by a kill after the second checkpoint
    out: str = "out"


STATES = (
    State("finished, same again", LORA, LORA),
    State("finished, more steps", LORA, (*LORA, *MORE)),
    State("half, same again", LORA, LORA, stopped=True),
    State("half, averages", AVERAGED, AVERAGED, stopped=True),
    State("another run, same cache", LORA, (*LORA, "--out", "{work}/other"), out="other"),
    State("whole model, more steps", scenes.SCENES["dreambooth"].before[0], scenes.SCENES["dreambooth"].words),
)


def garble(data: bytes, dice: random.Random) -> bytes:
    return dice.randbytes(len(data))


def flip(data: bytes, dice: random.Random) -> bytes:
    made = bytearray(data)
    if made:
        made[dice.randrange(len(made))] ^= 1 << dice.randrange(8)
    return bytes(made)


def one_number(data: bytes, dice: random.Random) -> bytes:
    """The last number of a tensor becomes infinite, nan, or large; of a text, a digit changes."""
    places = [i for i, byte in enumerate(data[:100_000]) if 48 <= byte <= 57]
    if data[:1] == b"{" and places:
        at = dice.choice(places)
        return data[:at] + bytes([dice.choice(b"0123456789")]) + data[at + 1 :]
    return data[:-4] + dice.choice((b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\0\x80\x47"))


KINDS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "one bit": flip,
    "one number": one_number,
    "cut in half": lambda data, dice: data[: len(data) // 2],
    "empty": lambda data, dice: b"",
    "garbled": garble,
    "zeros": lambda data, dice: bytes(len(data)),
    "longer": lambda data, dice: data + b"\0" * 8,
    "gone": lambda data, dice: None,
}


def attack(ledger: Ledger, place: Place, only: str | None = None, most: int | None = None) -> None:
    """Random files, each damaged in a random way, in every state in turn."""
    dice = random.Random(ledger.seed)  # noqa: S311
    states = [s for s in STATES if only in (None, s.name)]
    wholes = {state.name: _whole(place, state) for state in states}
    tried = 0
    while ledger.open() and tried != most:
        state = states[tried % len(states)]
        tried += 1
        shutil.rmtree(place.work)
        shutil.copytree(_kept(place, state), place.work)
        victim = dice.choice([p for p in sorted(place.work.rglob("*")) if p.is_file() and not p.is_symlink()])
        how = dice.choice([*KINDS])
        _damage(victim, how, dice)
        name = victim.relative_to(place.work).as_posix()
        outcome = place.run(state.then)
        end, text = judged(place, state, wholes[state.name], name, outcome)
        ledger.count(state.name, end, not text, outcome.seconds, outcome.peak)
        if text:
            ledger.fail(state.name, f"{how}: {_shown(name)}", f"{end}: {text}\nfile: {name}, {how}")


def _kept(place: Place, state: State) -> Path:
    return place.root / "states" / state.name


def _whole(place: Place, state: State) -> Whole:
    """What the command leaves where nothing is damaged; keeps the state that it begins from."""
    place.clear()
    if state.stopped:
        scene = Scene(state.name, state.first)
        names = kills.names(place, scene)
        at = next(i for i, name in enumerate(names, 1) if name.startswith("replace out/checkpoints/.tmp-step-00000002"))
        with kills.at_event(place, scene, at, AFTER) as (outcome, _):
            assert outcome.kind == trial.KILLED, outcome
    else:
        assert (first := place.run(state.first)).kind == trial.OK, first
    shutil.copytree(place.work, _kept(place, state), dirs_exist_ok=True)
    trees = []
    for _ in range(2):
        shutil.rmtree(place.work)
        shutil.copytree(_kept(place, state), place.work)
        assert (then := place.run(state.then)).kind == trial.OK, then
        trees.append(compare.tree(place.work / state.out))
    return Whole.of(*trees)


def _damage(victim: Path, how: str, dice: random.Random) -> None:
    made = KINDS[how](victim.read_bytes(), dice)
    victim.unlink()
    if made is not None:
        victim.write_bytes(made)


def judged(place: Place, state: State, whole: Whole, name: str, outcome: trial.Outcome) -> tuple[str, str]:
    """How it ended, and what is wrong with that; a picture or a record that is damaged itself trains nothing."""
    if outcome.kind not in trial.SURVIVED or "Traceback" in outcome.output:
        return outcome.kind if outcome.kind != trial.OK else "traceback", f"{outcome.text}\n{outcome.output[-2500:]}"
    if outcome.kind == trial.REFUSED:
        said = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
        return ("refused", "") if said else ("refused without a word", outcome.output[-1000:])
    inside = name.removeprefix(f"{state.out}/")
    wrong = [
        text
        for text in whole.differences(compare.tree(place.work / state.out), _learned)
        if not text.startswith(inside) or _learned(inside)
    ]
    if inside.startswith("averages/") and all(text.startswith(inside) for text in wrong):
        return _of_snapshot(place, state, inside)
    return (WRONG, "; ".join(wrong)) if wrong else ("as undisturbed", "")


def _of_snapshot(place: Place, state: State, name: str) -> tuple[str, str]:
    """Of a snapshot, which one command alone reads: one that is gone is not averaged, as that command says; a damaged one it refuses."""
    if not (place.work / state.out / name).exists():
        return "as undisturbed", ""
    read = place.run(("adapter", "average", f"{{work}}/{state.out}", "--length", "0.1"))
    whole = read.kind == trial.REFUSED and "Traceback" not in read.output
    return ("refused when read", "") if whole else (WRONG, f"averaged all the same: {read.kind} {read.output[-500:]}")


def _learned(name: str) -> bool:
    """Whether a file holds what was learned, or what was measured of it."""
    return name.endswith((".safetensors", "summary.json")) and not name.startswith("checkpoints/")


def _shown(name: str) -> str:
    import re

    return re.sub(r"[0-9a-f]{12,}", "KEY", name)
