"""Measures the adapter types at equal trainable parameters on subjects that the embedded base has never seen.

    python scripts/bench_adapters.py speed --out DIR
    python scripts/bench_adapters.py rates --node-modules DIR --out DIR
    python scripts/bench_adapters.py run --node-modules DIR --out DIR
    python scripts/bench_adapters.py table --out DIR

`speed` times the types' steps in turn; `rates` finds each type's learning rate at each size by the held-out loss of two subjects, from the
lowest upwards until it gets worse; `run` trains every type at every size and its best rate on every subject, for as many steps and for as
many seconds as LoRA, and measures what was learned. What has a row is not done again. Several at once share the work: --part 0/2 and
--part 1/2. `table` makes docs/adapters.md.
"""

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "base"))
from bench_methods import COMMON, OTHERS, SUBJECTS, Bench, by_subject, drawn, held_out_losses, into, prompts, shown
from views import views

from finetune import config
from finetune.config.adapter_types import ROWS
from finetune.config.precedence import merge_settings
from finetune.errors import FinetuneError, Stopped
from finetune.evaluation import subject
from finetune.evaluation.heldout import paired
from finetune.training import plan
from finetune.training.loop import gradient, update
from finetune.training.run import begun, train

RANKS = (2, 8, 32)  # of LoRA: the sizes that the others are brought to
RATES = (5e-4, 1.5e-3, 5e-3, 1.5e-2, 5e-2)
TRIED = SUBJECTS[:2]  # subjects that choose the rates
HOW = ("steps", "seconds")  # what is equal
STEPS, NEAR = 250, 0.2  # share by which a type's size may miss
AS_FAST = 1.05  # of LoRA's time: what is no slower has no runs of its own for equal seconds
PICTURES = Path(__file__).parents[1] / "tests" / "fluent"


def settings(kind: str, method: dict[str, Any], **more: Any) -> dict[str, Any]:
    quiet = {"run": {"holdout_every": 10**6, "checkpoint_every": 10**6}, "optim": {"steps": STEPS, "batch": 2}}
    own = {"method": {"kind": kind, "targets": "all-linear", **method}, "data": {"path": str(PICTURES)}}
    return merge_settings(COMMON, quiet, own, more)


def parameters(kind: str, method: dict[str, Any]) -> int:
    try:
        return sum(plan.fit(config.parse(settings(kind, method)))[1].values())
    except FinetuneError:  # a block of oft that does not divide a layer's inputs
        return 0


def sizes() -> dict[str, dict[str, Any]]:
    """`type, LoRA's rank` -> the settings whose parameters are nearest to those of LoRA of that rank, where any are near."""
    found = {}
    for rank in RANKS:
        wanted = parameters("lora", {"rank": rank})
        for kind in ROWS:
            if "factor" in ROWS[kind].takes:
                options = [{"rank": r, "factor": f} for f in (2, 4, 8, -1) for r in (1, 2, 4, 6, 8, 12, 16, 24, 32, 1024)]
            else:
                options = [{"rank": r} for r in (*range(1, 9), *range(10, 33, 2), 48, 64)]
            counted = {json.dumps(o): parameters(kind, o) for o in options}
            best = min(counted, key=lambda o: abs(math.log(max(counted[o], 1) / wanted)))
            if abs(counted[best] / wanted - 1) <= NEAR:
                found[f"{kind}, {rank}"] = {"kind": kind, "size": rank, "method": json.loads(best), "parameters": counted[best]}
    return found


def cells(out: Path) -> dict[str, dict[str, Any]]:
    path = out / "sizes.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(sizes(), indent=1))
    made: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return made


def speed(out: Path, rounds: int = 40) -> None:
    """Seconds of a step as a multiple of LoRA's of the same size, medians of pairs in turn."""
    runs = {}
    for name, cell in cells(out).items():
        runner = begun(config.parse(settings(cell["kind"], cell["method"], run={"out": str(out / "speed" / name.replace(", ", "-"))})))
        runs[name] = runner.training
    times: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(rounds + 3):
        for name, training in runs.items():
            start = time.perf_counter()
            gradient(training, step)
            update(training, step)
            if step >= 3:
                times[name].append(time.perf_counter() - start)
    ratio = {n: statistics.median(a / b for a, b in zip(t, times[f"lora, {n.split(', ')[1]}"], strict=True)) for n, t in times.items()}
    (out / "speed.json").write_text(json.dumps({"ratio": ratio, "seconds": {n: statistics.median(t) for n, t in times.items()}}, indent=1))
    print(json.dumps(ratio, indent=1))


def rows(out: Path, what: str) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(out.glob(f"{what}*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]


def add(out: Path, what: str, part: str, row: dict[str, Any]) -> None:
    with (out / f"{what}-{part.partition('/')[0]}.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")


def trained(bench: Bench, name: str, cell: dict[str, Any], rate: float, steps: int, place: Path) -> tuple[dict[str, Any], list[float]]:
    """The summary, and the held-out loss before and after."""
    e = bench.emoji[name]
    data, held = views(e, bench.out / "data" / name / "train", False), views(e, bench.out / "data" / name / "held", True)
    own = {
        "data": {"path": str(data), "holdout": str(held)}, "run": {"out": str(place)}, "optim": {"lr": rate, "steps": steps},
        "subject": {"token": "sks", "class_word": e.kind, "prior_weight": 0.0},
    }  # fmt: skip
    summary = train(config.parse(settings(cell["kind"], cell["method"], **own)), fresh=True)
    losses = held_out_losses(place)
    return summary, [losses[0], losses[-1]]


def mine(found: Sequence[tuple[Any, ...]], part: str) -> list[tuple[Any, ...]]:
    index, _, count = part.partition("/")
    return list(found[int(index) :: int(count)])


def tried(out: Path, cell: str) -> dict[float, float]:
    """Rate -> the mean of the held-out losses after, of those before, for the rates that all subjects were tried with."""
    found: dict[float, list[float]] = {}
    for r in rows(out, "rates"):
        if r["cell"] == cell:
            found.setdefault(r["rate"], []).append(r["held_out"][1] / r["held_out"][0])
    return {rate: statistics.fmean(values) for rate, values in sorted(found.items()) if len(values) == len(TRIED)}


def rates(node_modules: Path, out: Path, part: str) -> None:
    bench, made = Bench(node_modules, out), cells(out)
    work = [(rate, name, cell) for rate in RATES for name in TRIED for cell in made]
    known = {(r["rate"], r["subject"], r["cell"]) for r in rows(out, "rates")}
    for rate, name, cell in mine(work, part):
        lower = [mean for r, mean in tried(out, cell).items() if r < rate]
        if (rate, name, cell) in known or (len(lower) > 1 and lower[-1] > min(lower)):  # it gets worse
            continue
        try:
            _, losses = trained(bench, name, made[cell], rate, STEPS, out / "rates" / part.partition("/")[0])
        except Stopped:
            raise
        except FinetuneError:  # not finite
            losses = [1.0, 1e9]
        add(out, "rates", part, {"rate": rate, "subject": name, "cell": cell, "held_out": losses})
        print(f"{cell} at {rate:g}, {name}: {losses[0]:.4f} -> {losses[1]:.4f}", flush=True)


def best_rates(out: Path) -> dict[str, float]:
    return {cell: min(means, key=lambda r: means[r]) for cell in cells(out) if (means := tried(out, cell))}


def run(node_modules: Path, out: Path, part: str) -> None:
    bench, made, chosen = Bench(node_modules, out), cells(out), best_rates(out)
    ratio = json.loads((out / "speed.json").read_text())["ratio"]
    work = [(name, cell, how) for name in SUBJECTS for how in HOW for cell in made if how == "steps" or ratio[cell] > AS_FAST]
    known = {(r["subject"], r["cell"], r["equal"]) for r in rows(out, "rows")}
    for name, cell, how in mine(work, part):
        if (name, cell, how) in known:
            continue
        e, place = bench.emoji[name], out / "runs" / f"{name}-{cell}-{how}".replace(", ", "-").replace(" ", "-")
        steps = STEPS if how == "steps" else max(1, round(STEPS / ratio[cell]))
        summary, losses = trained(bench, name, made[cell], chosen[cell], steps, place)
        data, held = (bench.out / "data" / name / side for side in ("train", "held"))
        files: dict[str, Any] = {"adapters": [summary["adapter"]]}
        after = bench.figures(e, drawn(prompts(f"sks {e.kind}"), place / "subject", **files), data, held)
        before = bench.before(e)
        others = drawn([f"{o}, noto style" for o in OTHERS], place / "others", **files)
        row = {
            "subject": name, "cell": cell, "equal": how, "steps": steps, "rate": chosen[cell], "held_out": losses,
            "bytes": Path(summary["adapter"]).stat().st_size, "base": bench.figures(e, before["class"], data, held), "after": after,
            "drift": subject.drift(bench.features(before["others"]), bench.features(others)),
        }  # fmt: skip
        shutil.rmtree(place / "checkpoints", ignore_errors=True)
        add(out, "rows", part, row)
        print(f"{name}, {cell}, equal {how}: fidelity {row['base']['fidelity']:.3f} -> {after['fidelity']:.3f}", flush=True)


def table(out: Path) -> str:
    """Markdown: a line for each type and size; intervals are 95 % ones over subjects, of differences to LoRA of the same size."""
    made, ratio = cells(out), json.loads((out / "speed.json").read_text())["ratio"]
    found = rows(out, "rows")
    by = {name: sum(r["subject"] == name for r in found) for name in SUBJECTS}
    subjects = [name for name in SUBJECTS if by[name] == max(by.values()) > 0]  # those that all cells have been run on
    found = [r for r in found if r["subject"] in subjects]
    lines = [
        f"{len(found)} runs on {len(subjects)} subjects.", "",
        "| type, rank | parameters | rate | step | file | held-out loss | against LoRA, equal steps | equal seconds | fidelity "
        "| against LoRA, equal steps | equal seconds | drift of other things |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip

    def figure(cell: str, how: str, what: str) -> dict[str, float]:
        def value(r: dict[str, Any]) -> float:
            if what == "loss":
                return 100 * float(r["held_out"][1] / r["held_out"][0] - 1)
            return float(r["drift"] if what == "drift" else r["after"]["fidelity"])

        return {r["subject"]: value(r) for r in found if r["cell"] == cell and r["equal"] == how}

    def against(cell: str, how: str, what: str, digits: int, other: str = "") -> str:
        a, b = figure(other or f"lora, {made[cell]['size']}", "steps", what), figure(cell, how, what)
        both = [s for s in SUBJECTS if s in a and s in b]
        if len(both) < 2 or cell == (other or f"lora, {made[cell]['size']}"):
            return ""
        pair = [[{"subject": s, "value": of[s]} for s in both] for of in (a, b)]
        return shown(paired(*(by_subject(side, lambda r: r["value"]) for side in pair)), digits)

    for cell, c in made.items():
        mine = [r for r in found if r["cell"] == cell and r["equal"] == "steps"]
        if not mine:
            continue
        loss, fidelity, drift = (statistics.fmean(figure(cell, "steps", w).values()) for w in ("loss", "fidelity", "drift"))
        factor = f", factor {c['method']['factor']}" if "factor" in c["method"] else ""
        columns = [
            f"{c['kind']}, {c['method']['rank']}{factor}", f"{c['parameters']:,}", f"{mine[0]['rate']:g}", f"{ratio[cell]:.2f}",
            f"{mine[0]['bytes'] / 1e3:.0f} kB", f"{loss:+.1f} %", *(against(cell, how, "loss", 1) for how in HOW),
            f"{fidelity:.3f}", *(against(cell, how, "fidelity", 3) for how in HOW), f"{drift:.3f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(columns)} |")
    lines += ["", "| LoRA against that of rank 8, equal steps | held-out loss | fidelity | drift of other things |", "|---|---|---|---|"]
    for rank in (r for r in RANKS if r != 8):
        columns = [
            against(f"lora, {rank}", "steps", what, digits, "lora, 8") for what, digits in (("loss", 1), ("fidelity", 3), ("drift", 3))
        ]
        lines.append(f"| rank {rank} | {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "rates", "run", "table"])
    parser.add_argument("--node-modules", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="0/1")
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.out)
    elif given.what == "table":
        into(Path(__file__).parents[1] / "docs" / "adapters.md", table(given.out))
    else:
        {"rates": rates, "run": run}[given.what](given.node_modules, given.out, given.part)


if __name__ == "__main__":
    main()
