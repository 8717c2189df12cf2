"""The attacks themselves: what dies is seen to die, what is planted is found; and, slow, a short one of each."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

if os.name != "posix":
    pytest.skip("trials are forked", allow_module_level=True)

from attacks import corpus, figures, fuzz, ledger, mutate, trial  # noqa: E402
from attacks.compare import Whole  # noqa: E402
from attacks.events import AFTER, BEFORE, EXIT, Events  # noqa: E402
from attacks.readers import Kind  # noqa: E402
from attacks.scenes import Place  # noqa: E402

from finetune.errors import DataError  # noqa: E402


def write_two(root: Path) -> None:
    (root / "a").write_bytes(b"a")
    os.replace(root / "a", root / "b")


@pytest.mark.parametrize(
    ("how", "at", "left"), [(BEFORE, 1, []), (AFTER, 1, ["a"]), (BEFORE, 2, ["a"]), (AFTER, 2, ["b"]), (BEFORE, 3, ["b"])]
)
def test_a_command_ends_before_or_after_a_write(how: str, at: int, left: list[str], tmp_path: Path) -> None:
    def work() -> None:
        Events(tmp_path, at, how).watch()
        write_two(tmp_path)

    outcome = trial.fork(work)
    assert (outcome.kind, outcome.text) == ((trial.KILLED, f"exit {EXIT}") if at < 3 else (trial.OK, ""))
    assert [p.name for p in tmp_path.iterdir()] == left


def test_a_write_is_refused_as_the_system_would(tmp_path: Path) -> None:
    def work() -> list[str]:
        events = Events(tmp_path, 2, "ENOSPC").watch()
        with pytest.raises(OSError, match="No space left"):
            write_two(tmp_path)
        return events.names

    assert trial.fork(work).value == ["open a", "replace a"]


def refuse() -> None:
    raise DataError("no")


def foreign() -> None:
    raise KeyError("x")


def die() -> None:
    os.abort()


def take() -> None:
    bytearray(200_000_000)[::4096] = bytes(200_000_000 // 4096 + 1)


@pytest.mark.parametrize(
    ("work", "kind"), [(dict, trial.OK), (refuse, trial.REFUSED), (foreign, trial.FOREIGN), (die, trial.KILLED), (take, trial.MEMORY)]
)
def test_every_end_is_told_from_the_others(work: trial.Work, kind: str) -> None:
    assert trial.fork(work, memory=100_000_000).kind == kind


def test_a_hang_is_ended() -> None:
    assert trial.fork(lambda: time.sleep(60), limit=0.2).kind == trial.HANG


def planted(folder: Path, data: bytes) -> None:
    """A reader with a mistake for each of some beginnings."""
    if data.startswith(b"k"):
        raise KeyError("planted")
    if data.startswith(b"d"):
        die()
    if data.startswith(b"r"):
        raise DataError("refused")
    if data.startswith(b"c"):
        os.system("true")  # noqa: S605, S607


def test_planted_mistakes_are_found_and_kept(tmp_path: Path) -> None:
    kept = ledger.Ledger("fuzz", 0, tmp_path / "kept", 1)
    trials = fuzz.Trials(Kind("planted", lambda: [b"ok"], planted), Place(tmp_path), kept)
    trials.batch([b"ok", b"k1", b"r", b"d", b"c", b"k2", b"ok"])
    assert kept.tallies["planted"].ends == {"ok": 2, "foreign": 2, "refused": 1, "killed": 1, fuzz.RAN: 1}
    assert kept.tallies["planted"].survived == 3
    assert sorted(p.read_bytes() for p in (tmp_path / "kept").rglob("*.input")) == [b"c", b"d", b"k1", b"k2"]


@pytest.mark.parametrize(
    ("output", "ran", "wrong"),
    [("a\n", False, ""), ("\x1b[2J", False, "control"), ("error: a\nhint: b\nerror: c", False, "forged"), ("", True, "code ran")],
)
def test_what_a_hostile_file_did_is_seen(output: str, ran: bool, wrong: str) -> None:
    found = corpus.judged(trial.Outcome(trial.OK, output=output), ran)
    assert wrong in found and bool(found) == bool(wrong)


def test_mutations_are_a_function_of_the_seed() -> None:
    import random

    def made(seed: int) -> list[bytes]:
        dice = random.Random(seed)  # noqa: S311
        return [mutate.mutate(b'{"a": 1}', dice, [b"other"]) for _ in range(50)]

    assert made(1) == made(1) != made(2) and len(set(made(1))) > 40


def test_what_differs_between_two_undisturbed_runs_is_not_held_against_a_third() -> None:
    whole = Whole.of({"s.json": b'{"loss": 1, "seconds": 2}', "a": b"x"}, {"s.json": b'{"loss": 1, "seconds": 3}', "a": b"x"})
    assert whole.differences({"s.json": b'{"loss": 1, "seconds": 9}', "a": b"x"}) == []
    assert whole.differences({"s.json": b'{"loss": 2, "seconds": 9}', "b": b""}) == [
        "a is missing",
        "b is too much",
        "s.json says otherwise: 0.loss",
    ]


def test_figures_add_up_over_seeds_and_name_the_commit(tmp_path: Path) -> None:
    file, page = tmp_path / "figures.json", tmp_path / "page.md"
    for seed, ends in ((1, ["ok", "foreign"]), (2, ["ok"]), (2, ["ok"])):
        one = ledger.Ledger("fuzz", seed, tmp_path, 1)
        for end in ends:
            one.count("tar", end, end == "ok", 0.5, 10**6)
        figures.add(one, file)
    assert list(json.loads(file.read_text())) == [figures.commit()]
    page.write_text(f"before {figures.BEGIN} old {figures.END} after")
    figures.report(file, page)
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after") and "old" not in text
    assert "| tar | 3 | 2 | 1 | 1 foreign, 2 ok | 0.5 s | 1 MB |" in text and figures.commit() in text


# What is known to be wrong, until it is mended, is not hidden: these fail with the place of the kept inputs.
SHORT = {
    "kills": ("--only", "textual inversion", "--most", "12"),
    "faults": ("--only", "textual inversion", "--most", "12"),
    "damage": ("--only", "half, same again", "--most", "8"),
    "fuzz": ("--most", "60", "--budget", "0.6"),
    "corpus": (),
    "resources": ("--most", "12"),
    "concurrency": ("--most", "1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", list(SHORT))
def test_a_short_attack(attack: str, tmp_path: Path) -> None:
    words = [
        sys.executable,
        str(ROOT / "scripts" / "attack.py"),
        attack,
        "--budget",
        "0.7",
        *SHORT[attack],
        "--out",
        str(tmp_path / "kept"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
