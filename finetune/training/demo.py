"""The demo: one real run of `ft lora` on the shipped pictures, then the same prompts drawn before and after."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune import config
from finetune.bases import DEMO_HELD_OUT, DEMO_PICTURES
from finetune.results import checkpoint
from finetune.run_folder import RunFolder
from finetune.sampling import draw
from finetune.sampling.generate import Request, generate
from finetune.training.run import train


def demo(out: Path, steps: int, fresh: bool, prompts: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the paths of the adapter and of the sheet. The settings are those of `recipes/tiny-style.yaml`. One that went on to more
    steps, as its last lines say how, is drawn as it is now."""
    saved = [] if fresh else checkpoint.steps(RunFolder(out).checkpoints)
    steps = max([steps, *saved])
    job = config.parse(
        {
            "model": {"base": "tiny"},
            "data": {"path": str(DEMO_PICTURES), "holdout": str(DEMO_HELD_OUT), "caption_dropout": 0.0},
            "method": {"targets": "all-linear", "rank": 16},  # captions are plain names, so that the style needs no word
            "optim": {"steps": steps, "batch": 4, "lr": 3e-3, "schedule": "cosine"},
            "run": {"out": str(out), "name": "ink", "holdout_every": steps},
        }
    )
    summary = train(job, fresh)
    before = generate(Request(prompts, base="tiny", out=out / "before", seed=1, replace=True), lambda text: None)
    after = generate(Request(prompts, [summary["adapter"]], out=out / "after", seed=1, replace=True), lambda text: None)
    sheet = out / "before-after.png"
    rows = [(name, [draw.open_png(p["path"]) for p in side]) for name, side in (("before", before), ("after", after))]
    draw.save_png(draw.sheet(rows, prompts), sheet, {})
    say(f"wrote {sheet}")
    return {"adapter": summary["adapter"], "sheet": str(sheet)}
