"""Figures of all attacks, by commit and seed, in one JSON, and the tables made of them."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .ledger import Ledger

ROOT = Path(__file__).parents[2]
FILE, PAGE = ROOT / "docs" / "reliability.json", ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
Figures = dict[str, Any]  # commit -> attack -> kind -> seed -> tally


def commit() -> str:
    """The last commit that changed the package, with a + if the working tree's package differs from it."""
    name, changed = _git("log", "-1", "--format=%h", "--abbrev=12", "--", "finetune"), _git("status", "--porcelain", "--", "finetune")
    return (name or "unknown") + ("+" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()  # noqa: S607


def merge(before: Mapping[str, Any], seed: int, tally: Mapping[str, Any]) -> dict[str, Any]:
    """The tallies of one kind with one more; of the same seed again, the one with more trials stays."""
    known = before.get(str(seed))
    return {**before, str(seed): known if known and known["tried"] > tally["tried"] else dict(tally)}


def add(ledger: Ledger, file: Path = FILE) -> None:
    """Adds a ledger to the figures of the commit, which then stand last."""
    figures: Figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    attacks = figures.pop(commit(), {})
    figures[commit()] = attacks
    kinds = attacks.setdefault(ledger.attack, {})
    for kind, tally in ledger.facts().items():
        assert isinstance(tally, dict)
        kinds[kind] = merge(kinds.get(kind, {}), ledger.seed, tally)
    file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def summed(seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One tally of those of several seeds."""
    ends: dict[str, int] = {}
    for tally in seeds.values():
        for end, count in tally["ends"].items():
            ends[end] = ends.get(end, 0) + count
    most = {name: max(t[name] for t in seeds.values()) for name in ("slowest", "largest")}
    return {"tried": sum(t["tried"] for t in seeds.values()), "survived": sum(t["survived"] for t in seeds.values()), "ends": ends} | most


def tables(name: str, attacks: Mapping[str, Any]) -> str:
    """Markdown of one commit's figures."""
    lines = [f"Commit {name}.", ""]
    for attack, kinds in attacks.items():
        lines += [f"`{attack}`, seeds {', '.join(sorted({s for k in kinds.values() for s in k}, key=int))}:", ""]
        lines += ["| kind | tried | survived | did not | ended | slowest | most memory |", "|---|---|---|---|---|---|---|"]
        for kind, seeds in kinds.items():
            t = summed(seeds)
            ends = ", ".join(f"{n:,} {end}" for end, n in sorted(t["ends"].items()))
            counts = f"{t['tried']:,} | {t['survived']:,} | {t['tried'] - t['survived']:,}"
            lines.append(f"| {kind} | {counts} | {ends} | {t['slowest']:.1f} s | {t['largest'] / 1e6:,.0f} MB |")
        lines.append("")
    return "\n".join(lines)


def report(file: Path = FILE, page: Path = PAGE) -> None:
    """Writes the tables of the commit that was attacked last into the page, between its marks."""
    figures: Figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n\n{tables(*list(figures.items())[-1]) if figures else ''}\n{END}{tail}", encoding="utf-8")
