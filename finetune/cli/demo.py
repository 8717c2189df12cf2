"""`ft demo`: teach the embedded base a style it has never seen, and look at the difference."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

# What the base draws well, and none of the 24 training pictures shows.
SUBJECTS = ("fox face", "dog face", "tulip", "pear", "taxi", "gem stone", "blue heart", "cherries", "crab", "deciduous tree")


def command(
    out: Annotated[Path, typer.Option("--out", help="output folder")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option("--steps", min=1, help="training steps")] = 400,
    fresh: Annotated[bool, typer.Option("--fresh", help="start over, removing what an earlier demo in --out wrote")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON object at the end")] = False,
) -> None:
    """Teach the embedded base to draw in black ink on white, and draw a before/after sheet. About a minute on two CPU cores."""
    from finetune import cli
    from finetune.training.demo import demo

    began = time.monotonic()
    summary: dict[str, Any] = demo(out, steps, fresh, SUBJECTS, lambda text: print(text, file=sys.stderr))
    summary["seconds"] = round(time.monotonic() - began, 1)
    if json_:
        cli.emit(summary)
        return
    print(f"""
Done in {summary["seconds"]:.0f} s. Look at the difference: {summary["sheet"]}
The adapter: {summary["adapter"]}

Next, try
  ft generate --adapter {summary["adapter"]} --prompt "butterfly" --count 4 --grid
  ft lora --data YOUR_PICTURES --trigger yourword --base sd15""")
