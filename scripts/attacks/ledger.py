"""What an attack tried and what survived, and a folder with every input that did not."""

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tally:
    """Of one kind of trial."""

    tried: int = 0
    survived: int = 0
    ends: dict[str, int] = field(default_factory=dict)  # how many ended how
    slowest: float = 0.0  # seconds
    largest: int = 0  # bytes


@dataclass
class Ledger:
    """One attack with one seed."""

    attack: str
    seed: int
    out: Path
    minutes: float
    tallies: dict[str, Tally] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def open(self, share: float = 1.0) -> bool:
        """Whether there is time left, of a share of the budget."""
        return time.monotonic() - self.began < self.minutes * 60 * share

    def count(self, kind: str, end: str, survived: bool, seconds: float = 0.0, size: int = 0, times: int = 1) -> None:
        tally = self.tallies.setdefault(kind, Tally())
        tally.tried += times
        tally.survived += times * survived
        tally.ends[end] = tally.ends.get(end, 0) + times
        tally.slowest, tally.largest = max(tally.slowest, seconds), max(tally.largest, size)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"note: {text}")

    def fail(self, kind: str, what: str, text: str, data: bytes | None = None, again: str = "") -> None:
        """Keeps a failing input with its traceback and the line that repeats it; of those that fail alike, five."""
        alike = f"{kind}: {re.sub(r':.* at ', ' at ', _last_lines(text))}"
        self.failures.append(alike)
        if self.failures.count(alike) > 5:
            return
        folder = self.out / self.attack
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w.-]+", "-", f"{kind}-{what}")[:100]
        if data is not None:
            (folder / f"{name}.input").write_bytes(data)
        again = again or f"python scripts/attack.py {self.attack} --seed {self.seed} --only '{kind}'"
        (folder / f"{name}.txt").write_text(f"{what}\n\nagain: {again}\n\n{text}\n", encoding="utf-8", errors="backslashreplace")
        print(f"FAILED {kind}: {what}: {_last_lines(text)}")

    def print(self) -> None:
        for kind, tally in self.tallies.items():
            ends = ", ".join(f"{n} {end}" for end, n in sorted(tally.ends.items()))
            counts = f"tried {tally.tried:>6}  survived {tally.survived:>6}"
            print(f"{self.attack:<12} {kind:<20} {counts}  ({ends}; slowest {tally.slowest:.1f} s)")
        if self.failures:
            print(f"{len(self.failures)} failed, of {len(set(self.failures))} kinds: {self.out / self.attack}")

    def facts(self) -> dict[str, object]:
        made: dict[str, object] = json.loads(json.dumps({kind: vars(tally) for kind, tally in self.tallies.items()}))
        return made


def _last_lines(text: str) -> str:
    """What tells one failure from another: the error, and the last place in the package; of other text the first line."""
    lines = text.strip().splitlines() or [""]
    places = [line.strip() for line in lines if line.strip().startswith('File "')]
    if not places:
        return re.sub(r"\d{3,}", "N", lines[0])[:160]
    here = [place for place in places if "/finetune/" in place] or places
    error = next((line for line in reversed(lines) if re.match(r"[\w.]+(:|$)", line)), lines[-1])
    file, _, line = here[-1].removeprefix('File "').partition('", line ')
    return f"{re.sub(r'0x[0-9a-f]+|/[^ ]*/|[0-9]+', '', error)[:60]} at {'/'.join(file.split('/')[-3:])}:{line.partition(',')[0]}"
