"""Measures every method on subjects that the embedded base has never seen: python scripts/bench_methods.py run --node-modules DIR --out DIR

Trains each method on each subject with each seed, draws, measures, and keeps a row of figures; what has a row is not done again, so
that it goes on where it stopped. `table` makes docs/methods.md of the rows. The pictures' packages are named in scripts/base/data.py.
Several at once share the work: --part 0/2 and --part 1/2.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "base"))
from data import Emoji, emojis
from views import STYLES, views

from finetune import config
from finetune.config.precedence import merge_settings
from finetune.evaluation import subject
from finetune.evaluation.clip import Clip
from finetune.evaluation.heldout import Interval, paired
from finetune.evaluation.judge import Judge
from finetune.results import metrics
from finetune.run_folder import RunFolder
from finetune.sampling.generate import Request, generate, grid
from finetune.training.run import train

SUBJECTS = ("owl", "koala", "strawberry", "pineapple", "hamburger", "cactus", "guitar", "helicopter", "fire engine", "sailboat")
SEEDS = (0, 1, 2)
COUNT, STEPS, GUIDANCE = 4, 20, 4.0  # pictures a prompt, DDIM steps, guidance scale
OTHERS = ("rocket", "tulip", "pear", "bus")  # things that the base knows and that are no subject's class

_OWN = {"token": "sks", "class_count": 48, "class_steps": STEPS}
_FEW = {"optim": {"batch": 2}}  # as many pictures of the subject a step as where class pictures stand beside them
_WITHOUT = {**_OWN, "prior_weight": 0.0}
_LORA = {"kind": "lora", "targets": "all-linear", "rank": 8}
_TOKEN: dict[str, Any] = {"data": {"caption_dropout": 0.0}, "optim": {"lr": 1e-2, "batch": 4}}
METHODS: dict[str, dict[str, Any]] = {
    "LoRA (DreamBooth LoRA without prior)": {"subject": _WITHOUT, "method": _LORA, "optim": {"lr": 2e-3, "batch": 2}},
    "DreamBooth LoRA, prior": {"subject": _OWN, "method": _LORA, "optim": {"lr": 2e-3}},
    "LoRA, preserving": {  # the base's own answers to the class word, and no class pictures
        "subject": _WITHOUT,
        "method": _LORA,
        "optim": {"lr": 2e-3, "batch": 2},
        "objective": {"preserve_weight": 1.0},
    },
    "DreamBooth full, without prior": {"subject": _WITHOUT, "method": {"kind": "full"}, "optim": {"lr": 2e-4, "batch": 2}},
    "DreamBooth full, prior": {"subject": _OWN, "method": {"kind": "full"}, "optim": {"lr": 2e-4}},
    "Textual Inversion, 1 vector": merge_settings(_TOKEN, {"method": {"kind": "none", "vectors": 1}}),
    "Textual Inversion, 4 vectors": merge_settings(_TOKEN, {"method": {"kind": "none", "vectors": 4}}),
    "pivotal tuning, 4 vectors": {
        "method": {**_LORA, "vectors": 4, "token_lr": 1e-2, "token_until": 0.5},
        "optim": {"lr": 2e-3, "batch": 2},
    },
}
COMMON = {"model": {"base": "tiny"}, "optim": {"steps": 250, "batch": 4, "schedule": "cosine"}}


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(p).convert("RGB") for p in sorted(folder.glob("*.png"))]


def drawn(prompts: Sequence[str], out: Path, **files: Any) -> list[Image.Image]:
    """COUNT pictures of each prompt, prompt by prompt."""
    base = files.pop("base", "tiny")
    asked = Request(prompts, base=base, steps=STEPS, guidance=GUIDANCE, seed=100, count=COUNT, out=out, replace=True, **files)
    made = generate(asked, lambda t: None)
    grid(out, made, COUNT, lambda t: None)
    return [Image.open(m["path"]).convert("RGB") for m in made]


def prompts(word: str) -> list[str]:
    return [word, *(f"{word}, {style} style" for style in STYLES)]


class Bench:
    def __init__(self, node_modules: Path, out: Path) -> None:
        self.out, self.judge, self.clip = out, Judge(), Clip()
        self.emoji = {e.name: e for e in emojis(node_modules) if e.held_out}

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        return self.judge(images)[0]

    def before(self, e: Emoji) -> dict[str, list[Image.Image]]:
        """The base's own pictures: of the class, and of other things."""
        folder = self.out / "base" / e.kind
        classes, others = prompts(e.kind), [f"{o}, noto style" for o in OTHERS]
        if not (folder / "others" / "grid.png").exists():
            drawn(classes, folder / "class")
            drawn(others, folder / "others")
        return {
            part: [Image.open(folder / part / f"{p:03d}-{100 + s}.png").convert("RGB") for p in range(n) for s in range(COUNT)]
            for part, n in (("class", len(classes)), ("others", len(others)))
        }

    def figures(self, e: Emoji, made: list[Image.Image], data: Path, held: Path) -> dict[str, float]:
        """Of pictures of the subject, drawn for `prompts`."""
        features = self.features(made)
        said = [p for p in prompts(e.kind) for _ in range(COUNT)]
        styles = torch.stack([self.judge.style(made[(i + 1) * COUNT : (i + 2) * COUNT], s) for i, s in enumerate(STYLES)])
        names = self.judge(made)[1].argmax(1)
        return {
            "fidelity": subject.fidelity(features, self.features(pictures(held))),
            "named": float((names == self.judge.names.index(e.name)).float().mean()),
            "prompt": float(self.clip.follows(made, said).mean()),
            "style": float((styles > 0).float().mean()),
            "diversity": subject.diversity(features.view(-1, COUNT, features.shape[1])),
            "memorisation": subject.memorisation(features, self.features(pictures(data))),
        }

    def row(self, name: str, method: str, seed: int) -> dict[str, Any]:
        e, slug = self.emoji[name], "".join(c if c.isalnum() else "-" for c in method.lower())
        place = self.out / "runs" / f"{name}-{slug}-{seed}".replace(" ", "-")
        data, held = views(e, self.out / "data" / name / "train", False), views(e, self.out / "data" / name / "held", True)
        settings = merge_settings(COMMON, {"data": {"path": str(data), "holdout": str(held)}}, METHODS[method])
        settings = merge_settings(settings, {"run": {"out": str(place), "seed": seed, "holdout_every": 10**6, "checkpoint_every": 10**6}})
        tokens = "vectors" in settings["method"]
        own = {"method": {"new_tokens": ["<x>"], "init_word": e.kind}} if tokens else {"subject": {"class_word": e.kind}}
        if "objective" in settings:
            own["objective"] = {"preserve": e.kind}
        before = self.before(e)
        base = self.figures(e, before["class"], data, held)
        began = time.monotonic()
        summary = train(config.parse(merge_settings(settings, own)), fresh=True)
        seconds = time.monotonic() - began
        written = {
            "adapters": [summary["adapter"]] if "adapter" in summary else [],
            "embeddings": [Path(summary["embedding"])] if "embedding" in summary else [],
            "base": summary.get("model", "tiny"),
        }
        word = "<x>" if tokens else f"sks {e.kind}"
        after = self.figures(e, drawn(prompts(word), place / "subject", **written), data, held)
        kept = {
            "class": drawn(prompts(e.kind), place / "class", **written),
            "others": drawn([f"{o}, noto style" for o in OTHERS], place / "others", **written),
        }
        losses = held_out_losses(place)
        size = sum(f.stat().st_size for k in summary["files"] if k != "best" for f in weights(Path(summary[k])))
        for unneeded in [*place.glob("model*"), place / "checkpoints"]:
            shutil.rmtree(unneeded, ignore_errors=True)
        return {
            "subject": name, "method": method, "seed": seed, "base": base, "after": after, "seconds": seconds, "bytes": size,
            "held_out": [losses[0], losses[-1]],
            "class": subject.fidelity(self.features(kept["class"]), self.features(pictures(held))),
            "drift": {part: subject.drift(self.features(before[part]), self.features(images)) for part, images in kept.items()},
        }  # fmt: skip


def held_out_losses(run: Path) -> list[float]:
    return [row.held_out_loss for row in metrics.read(RunFolder(run).metrics) if row.held_out_loss is not None]


def weights(path: Path) -> list[Path]:
    """The files of a result: of a model the trained part alone."""
    return [path] if path.is_file() else [*(path / "unet").glob("*.safetensors")]


def done(out: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    rows = [json.loads(line) for file in sorted(out.glob("rows*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    return {(r["subject"], r["method"], r["seed"]): r for r in rows}


def run(node_modules: Path, out: Path, part: str) -> None:
    index, _, count = part.partition("/")
    bench, mine = Bench(node_modules, out), SUBJECTS[int(index) :: int(count)]
    for seed in SEEDS:
        for name in mine:
            for method in METHODS:
                if (name, method, seed) in done(out):
                    continue
                row = bench.row(name, method, seed)
                with (out / f"rows-{index}.jsonl").open("a", encoding="utf-8") as f:
                    f.write(json.dumps(row) + "\n")
                a, b = row["after"], row["base"]
                print(
                    f"{seed} {name}, {method}: fidelity {b['fidelity']:.3f} -> {a['fidelity']:.3f}, named {a['named']:.2f}, "
                    f"drift {row['drift']['class']:.3f} and {row['drift']['others']:.3f}, {row['seconds']:.0f} s",
                    flush=True,
                )


def by_subject(rows: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> Tensor:
    """[subjects]: means over seeds, so that an interval is over subjects, which are what a user's own differs from."""
    return torch.tensor([statistics.fmean(v) for s in SUBJECTS if (v := [value(r) for r in rows if r["subject"] == s])])


def shown(i: Interval, digits: int = 3) -> str:
    return f"{i.mean:+.{digits}f} ({i.low:+.{digits}f} to {i.high:+.{digits}f})"


def change(figure: str) -> Callable[[Sequence[dict[str, Any]]], str]:
    """The change of a figure against the base's own pictures of the class, with its interval."""
    return lambda rows: shown(paired(by_subject(rows, lambda r: r["base"][figure]), by_subject(rows, lambda r: r["after"][figure])))


def mean(value: Callable[[dict[str, Any]], float], form: str) -> Callable[[Sequence[dict[str, Any]]], str]:
    return lambda rows: format(statistics.fmean(value(r) for r in rows), form)


def drift(part: str) -> Callable[[Sequence[dict[str, Any]]], str]:
    def column(rows: Sequence[dict[str, Any]]) -> str:
        values = by_subject(rows, lambda r: r["drift"][part])
        return shown(paired(torch.zeros_like(values), values)).replace("+", "")

    return column


def held_out(rows: Sequence[dict[str, Any]]) -> str:
    """The change of the loss on held-out views, in per cent."""
    before, after = by_subject(rows, lambda r: r["held_out"][0]), by_subject(rows, lambda r: r["held_out"][1])
    i = paired(torch.zeros_like(before), 100 * (after / before - 1))
    return shown(i, 1) + " %"


def leak(rows: Sequence[dict[str, Any]]) -> str:
    """How much more the class's pictures resemble the subject than the base's do."""
    return shown(paired(by_subject(rows, lambda r: r["base"]["fidelity"]), by_subject(rows, lambda r: r["class"])))


def size(rows: Sequence[dict[str, Any]]) -> str:
    n = rows[0]["bytes"]
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"


LEARNED = {
    "fidelity": mean(lambda r: r["after"]["fidelity"], ".3f"), "its change": change("fidelity"),
    "named": mean(lambda r: r["after"]["named"], ".0%"), "held-out loss": held_out, "memorisation": change("memorisation"),
}  # fmt: skip
KEPT = {
    "class to subject": leak, "drift of the class": drift("class"), "of other things": drift("others"), "prompt": change("prompt"),
    "style": mean(lambda r: r["after"]["style"], ".0%"), "diversity": change("diversity"),
    "seconds": lambda rows: f"{statistics.median(r['seconds'] for r in rows):.0f}", "file": size,
}  # fmt: skip
LORA, LORA_PRIOR, PRESERVING, FULL, FULL_PRIOR, _, TOKENS, PIVOTAL = METHODS
COMPARED = [  # a, b, figure: b - a
    (LORA, LORA_PRIOR, "class to subject"), (FULL, FULL_PRIOR, "class to subject"), (LORA, LORA_PRIOR, "drift of the class"),
    (FULL, FULL_PRIOR, "drift of the class"), (LORA, LORA_PRIOR, "fidelity"), (FULL, FULL_PRIOR, "fidelity"),
    (LORA, PIVOTAL, "fidelity"), (TOKENS, PIVOTAL, "fidelity"),
    *((other, PRESERVING, figure) for figure in ("class to subject", "drift of the class", "fidelity") for other in (LORA, LORA_PRIOR)),
]  # fmt: skip
VALUE: dict[str, Callable[[dict[str, Any]], float]] = {
    "class to subject": lambda r: r["class"],
    "drift of the class": lambda r: r["drift"]["class"],
    "fidelity": lambda r: r["after"]["fidelity"],
}


def columns(rows: Sequence[dict[str, Any]], of: dict[str, Callable[[Sequence[dict[str, Any]]], str]]) -> list[str]:
    lines = [f"| method | {' | '.join(of)} |", "|---|" + "---|" * len(of)]
    for method in METHODS:
        mine = [r for r in rows if r["method"] == method]
        lines.append(f"| {method} | {' | '.join(column(mine) for column in of.values())} |")
    return [*lines, ""]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: what is learned, what is kept, and the comparisons, each interval a 95 % one over subjects."""
    base = statistics.fmean(r["base"]["fidelity"] for r in rows)

    def counted(what: str) -> int:
        return len({r[what] for r in rows})

    lines = [
        f"{len(rows)} runs: {counted('method')} methods, {counted('subject')} subjects, {counted('seed')} seeds. "
        f"Fidelity of the base: {base:.3f}.", "",
        *columns(rows, LEARNED), *columns(rows, KEPT), "| compared | figure | difference |", "|---|---|---|",
    ]  # fmt: skip
    for a, b, figure in COMPARED:
        done_of = [{(r["subject"], r["seed"]): r for r in rows if r["method"] == m} for m in (a, b)]
        values = [by_subject([of[k] for k in sorted(done_of[0].keys() & done_of[1].keys())], VALUE[figure]) for of in done_of]
        lines.append(f"| {b} - {a} | {figure} | {shown(paired(*values))} |")
    return "\n".join(lines)


def into(page: Path, text: str) -> None:
    """Puts the tables where the page keeps them: between its two marks."""
    before, mark, rest = page.read_text(encoding="utf-8").partition("<!-- tables -->\n")
    _, end, after = rest.partition("<!-- end of tables -->")
    if not mark or not end:
        raise SystemExit(f"{page} has no place for tables")
    page.write_text(f"{before}{mark}\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--node-modules", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="0/1")
    given = parser.parse_args()
    if given.what == "run":
        run(given.node_modules, given.out, given.part)
    else:
        into(Path(__file__).parents[1] / "docs" / "methods.md", table(list(done(given.out).values())))


if __name__ == "__main__":
    main()
