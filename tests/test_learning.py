"""That training learns: 300 steps on 24 pictures of a style that the embedded base has never seen."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import config
from finetune.bases import DEMO_PICTURES
from finetune.evaluation.heldout import paired
from finetune.evaluation.judge import Judge, found
from finetune.sampling import draw
from finetune.sampling.generate import Request, generate
from finetune.training.run import train

HELD_OUT = Path(__file__).parent / "fluent"


def name(picture: Path) -> str:
    return picture.with_suffix(".txt").read_text(encoding="utf-8").strip()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The settings of `recipes/tiny-style.yaml`, which are the demo's, with alpha different from rank."""
    out = tmp_path_factory.mktemp("learning")
    recipe = config.read_yaml(Path(__file__).parents[1] / "recipes" / "tiny-style.yaml")
    more = {
        "data": {"path": str(DEMO_PICTURES), "holdout": str(HELD_OUT)},
        "method": {"rank": 8, "alpha": 6},
        "run": {"out": str(out), "holdout_every": 300},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FT_CACHE", str(out / "cache"))
        yield train(config.parse(config.load.merge(recipe, more)))


def test_the_held_out_loss_falls(trained: dict[str, Any]) -> None:
    last = [json.loads(line) for line in (Path(trained["out"]) / "metrics.jsonl").read_text().splitlines()][-1]
    assert trained["pictures"] == 24 and trained["held_out"] == 100
    assert last["step"] == 300 and last["held_out_change_high"] < 0, last


def test_new_pictures_are_closer_to_the_style(trained: dict[str, Any], tmp_path: Path) -> None:
    """60 names that were not trained on, drawn by the base and with the adapter from the same seeds."""
    prompts = [name(p) for p in sorted(HELD_OUT.glob("*.webp"))][:60]
    assert not set(prompts) & {name(p) for p in DEMO_PICTURES.glob("*.webp")}
    judge, styled, named = Judge(), [], []
    for adapters in ((), (trained["adapter"],)):
        made = generate(Request(prompts, adapters, base="tiny", steps=20, out=tmp_path / str(len(adapters))), lambda text: None)
        pictures = [draw.open_png(p["path"]) for p in made]
        styled.append(judge.style(pictures, "fluent"))
        named.append(found(judge(pictures)[1], [judge.names.index(n) for n in prompts], 1))
    change = paired(*styled)
    assert len(prompts) == 60 and change.low > 0, change
    assert named[1] > 0.8 * named[0], "the style must not cost the thing"


def test_the_judge_knows_what_it_judges() -> None:
    judge = Judge()
    files = sorted(HELD_OUT.glob("*.webp"))[:40]
    _, named, styled = judge([draw.open_png(p) for p in files])
    right = [judge.names.index(name(p)) for p in files]
    assert (named.argmax(1) == torch.tensor(right)).float().mean() > 0.9
    assert (styled.argmax(1) == 2).float().mean() > 0.9
