"""Inputs made worse by the thousand: no exception but ours, no hang, no gigabyte, no code run. Guided by coverage if atheris is there."""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import trial
from .ledger import Ledger
from .mutate import mutate
from .readers import Kind
from .scenes import Place

HANG, BATCH = 5, 200  # seconds; inputs a child
CODE = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.startfile",
    "pickle.find_class",
    "socket.connect",
    "ctypes.dlopen",
)
GUIDED = importlib.util.find_spec("atheris") is not None
RAN = "code run"


class CodeRun(BaseException):
    """An input made its reader do what no reader should."""


def attack(ledger: Ledger, place: Place, kinds: Sequence[Kind], most: int | None = None, blind: bool = False) -> None:
    """Every kind gets the same share of the budget, and `most` inputs; half of it guided, but where it is to be `blind`."""
    if not GUIDED:
        ledger.note("atheris is not installed: inputs are mutated blindly (pip install atheris)")
    for number, kind in enumerate(kinds):
        left = ledger.minutes * 60 - (time.monotonic() - ledger.began)
        share = left / (len(kinds) - number)
        trials = Trials(kind, place, ledger)
        guided = GUIDED and not blind and share > 10
        if guided:
            trials.guided(share / 2, (most or 10**9) // 2)
        trials.blind(time.monotonic() + share / (1 + guided), most)


class Trials:
    """Of one kind of input. A child takes many, one after another; its journal says which one it was at when it ended."""

    def __init__(self, kind: Kind, place: Place, ledger: Ledger) -> None:
        self.kind, self.ledger = kind, ledger
        self.seeds = kind.seeds()
        self.scratch = place.root / "scratch"
        self.journal = place.root / "journal"
        self.grown: list[bytes] = []
        self.number = 0

    def blind(self, until: float, most: int | None) -> None:
        dice = random.Random(f"{self.ledger.seed} {self.kind.name}")  # noqa: S311
        self.batch([*self.seeds])
        if not self.grown:
            self.ledger.note(f"{self.kind.name}: none of the sound inputs is read")
        done = len(self.seeds)
        while time.monotonic() < until and (most is None or done < most):
            pool = [*self.seeds, *self.seeds, *self.grown[-300:]]
            size = BATCH if most is None else min(BATCH, most - done)
            self.batch([mutate(dice.choice(pool), dice, pool) for _ in range(size)], until)
            done += size

    def batch(self, inputs: list[bytes], until: float | None = None) -> None:
        """All inputs, in as many children as it takes: one that ends at an input is followed by one that begins after it."""
        at = 0
        while at < len(inputs):
            self.journal.write_bytes(b"")
            rest = inputs[at:]
            outcome = trial.fork(partial(self.each, rest, until), limit=HANG * len(rest) + 60)
            rows = [json.loads(line) for line in self.journal.read_text(encoding="utf-8").splitlines()]
            for row in rows:
                self.take(rest[row["at"]], row)
            if outcome.kind == trial.OK:
                return
            bad = rows[-1]["at"] + 1 if rows else 0
            end = trial.HANG if outcome.text == "SIGALRM" else outcome.kind
            self.take(
                rest[min(bad, len(rest) - 1)], {"end": end, "text": f"{outcome.text}\n{outcome.output[-3000:]}", "seconds": HANG, "peak": 0}
            )
            at += bad + 1

    def each(self, inputs: Sequence[bytes], until: float | None) -> None:
        """In a child: reads each, and writes what came of it."""
        guard()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        with self.journal.open("a", encoding="utf-8") as journal:
            for at, data in enumerate(inputs):
                if until and time.monotonic() > until:
                    return
                signal.alarm(HANG + 1)
                journal.write(json.dumps({"at": at} | self.read(data)) + "\n")
                journal.flush()
                signal.alarm(0)

    def read(self, data: bytes) -> dict[str, Any]:
        """What reading one input came to."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        os.environ["FT_CACHE"] = str(self.scratch / "cache")
        before, began = trial.peak(), time.monotonic()
        end, text, fair = self.judged(data)
        seconds, peak = time.monotonic() - began, trial.peak() - before
        if peak - (fair if isinstance(fair, int) else 8 * len(data)) > trial.GIGABYTE:
            end, text = trial.MEMORY, f"{peak / 1e6:.0f} MB for {len(data)} bytes"
        return {"end": trial.HANG if seconds > HANG else end, "text": text[-6000:], "seconds": seconds, "peak": peak}

    def judged(self, data: bytes) -> tuple[str, str, object]:
        try:
            return trial.OK, "", self.kind.read(self.scratch, data)
        except CodeRun:
            return RAN, traceback.format_exc(), None
        except BaseException as e:
            return (trial.REFUSED, "", None) if trial.refusal(e) else (trial.FOREIGN, traceback.format_exc(), None)

    def take(self, data: bytes, row: dict[str, Any]) -> None:
        survived = row["end"] in trial.SURVIVED
        self.ledger.count(self.kind.name, row["end"], survived, row["seconds"], row["peak"])
        if survived and row["end"] == trial.OK and len(self.grown) < 300 and data not in self.grown:
            self.grown.append(data)
        if not survived:
            self.number += 1
            self.ledger.fail(
                self.kind.name, f"{row['end']} {self.ledger.seed}-{self.number}", row["text"] or row["end"], data, again(self.kind.name)
            )

    def guided(self, seconds: float, most: int) -> None:
        """Inputs that atheris makes towards code that none reached yet; it ends its process, so in a child."""
        corpus = self.scratch.parent / "corpus" / self.kind.name.replace(" ", "-")
        shutil.rmtree(corpus, ignore_errors=True)
        corpus.mkdir(parents=True)
        for i, seed in enumerate(self.seeds):
            (corpus / f"seed-{i}").write_bytes(seed)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 3:
            self.journal.write_bytes(b"")
            outcome = trial.fork(partial(self.atheris, corpus, int(left), most), limit=left + 60)
            inputs = 0
            for line in self.journal.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                inputs += 1
                self.take(bytes.fromhex(row["data"]), row)
            most -= inputs
            stopped = corpus.parent / "at"
            if outcome.kind == trial.OK or most <= 0 or not stopped.exists() or "Done " in outcome.output[-2000:]:
                return
            end = trial.HANG if "timeout" in outcome.output[-3000:] else outcome.kind
            self.take(stopped.read_bytes(), {"end": end, "text": f"{outcome.text}\n{outcome.output[-2000:]}", "seconds": 0, "peak": 0})

    def atheris(self, corpus: Path, seconds: int, most: int) -> None:
        import atheris

        guard()
        at = corpus.parent / "at"
        journal = self.journal.open("a", encoding="utf-8")

        def one(data: bytes) -> None:
            at.write_bytes(data)
            row = self.read(data)
            held = data.hex() if row["end"] not in trial.SURVIVED else ""
            journal.write(json.dumps(row | {"data": held}) + "\n")
            journal.flush()

        options = [
            f"-runs={most}",
            f"-max_total_time={seconds}",
            f"-timeout={HANG + 1}",
            "-rss_limit_mb=8000",
            f"-seed={self.ledger.seed + 1}",
        ]
        atheris.Setup(
            [sys.argv[0], *options, "-max_len=200000", f"-artifact_prefix={corpus.parent}/", str(corpus)], one, internal_libfuzzer=True
        )
        atheris.Fuzz()


def again(kind: str) -> str:
    return f"python scripts/attack.py repeat '{kind}' FILE.input"


def guard() -> None:
    """From here on in this process, code that an input runs is seen."""

    def hear(event: str, arguments: Any) -> None:
        if event in CODE and not (event == "ctypes.dlopen" and arguments[0] is None):
            raise CodeRun(f"{event} {arguments}")

    sys.addaudithook(hear)


def watched(blind: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Where atheris is there, what is imported within tells it what it reaches."""
    if not GUIDED or blind:
        return contextlib.nullcontext()
    import atheris

    guided: contextlib.AbstractContextManager[Any] = atheris.instrument_imports(include=["finetune", "PIL", "ruamel.yaml"])
    return guided
