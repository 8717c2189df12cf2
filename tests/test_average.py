"""Averages whose length is chosen after the run, against those that were tracked at that length all along."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from finetune import cli, config
from finetune.adapters.read import read
from finetune.config.adapter_types import ROWS
from finetune.config.precedence import merge_settings
from finetune.errors import ConfigError
from finetune.run_folder import RunFolder
from finetune.training import average
from finetune.training.average import TRACKED, PowerAverages, combination, exponent
from finetune.training.run import train


def test_the_exponents_of_the_paper() -> None:
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01) and exponent(0.10) == pytest.approx(6.94, abs=0.01)
    for length in (0.02, 0.1, 0.2):
        g = exponent(length)
        assert (g + 1) ** 0.5 / ((g + 2) * (g + 3) ** 0.5) == pytest.approx(length)


def walk(
    steps: int, lengths: tuple[float, ...], every: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, torch.Tensor]]:
    """Averages of a random walk, put down now and then."""
    monkeypatch.setattr(average, "TRACKED", lengths)
    g, p = torch.Generator().manual_seed(0), nn.Parameter(torch.zeros(400))
    kept = PowerAverages.of({"p": p})
    for step in range(steps):
        with torch.no_grad():
            p.add_(torch.randn(400, generator=g))
        kept.update({"p": p}, step)
        if (step + 1) % every == 0:
            kept.put_down(folder / RunFolder(folder).snapshot(step + 1).name, {})
    return kept.tracked


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.22])
def test_a_length_that_was_not_tracked_is_nearly_what_tracking_would_give(length: float, tmp_path: Path, monkeypatch: Any) -> None:
    walk(2000, TRACKED, 125, tmp_path / "two", monkeypatch)
    (wanted,) = walk(2000, (length,), 2000, tmp_path / "one", monkeypatch)
    monkeypatch.setattr(average, "TRACKED", TRACKED)
    made, step, _ = average.averaged((tmp_path / "two").glob("*"), length)
    off = (made["p"] - wanted["p"]).norm() / wanted["p"].norm()
    assert step == 2000 and off < 0.02
    other, *_ = average.averaged((tmp_path / "two").glob("*"), 0.1)
    assert (other["p"] - wanted["p"]).norm() / wanted["p"].norm() > 2 * off, "another length is something else"


def test_a_tracked_length_is_itself() -> None:
    for i, length in enumerate(TRACKED):
        weights = combination([250, 500, 1000], length)
        assert weights[-1, i] == pytest.approx(1, abs=1e-6) and abs(weights).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "method",
    [{"kind": "lora"}, {"kind": "loha"}, {"kind": "full"}, {"kind": "none", "new_tokens": ["<x>"], "vectors": 2}, {"text_encoder": True}],
    ids=str,
)
def test_a_run_writes_an_average_of_any_length(settings: Callable[..., dict[str, Any]], tmp_path: Path, method: Any, capsys: Any) -> None:
    out, rate = tmp_path / "out", {"lr": 1e-2} if method.get("kind") in ROWS else {}
    job = settings(method=method, optim={"steps": 8, "ema_posthoc": True, **rate}, run={"checkpoint_every": 2, "keep": 1})
    summary = train(config.parse(job))
    assert len(list((out / "averages").iterdir())) == 4
    assert cli.run(["adapter", "average", str(out), "--length", "0.2"]) == 0
    written = Path(capsys.readouterr().out.strip().splitlines()[-1])
    if written.is_dir():
        assert written.name == "model-average-0.2" and (out / "model").is_dir() and not (out / "model-best").exists()
        return
    made = load_file(written)
    last = load_file(summary["embedding" if method.get("new_tokens") else "adapter"])
    assert made.keys() == last.keys() and any(not torch.equal(made[k], last[k]) for k in made)
    assert all(torch.isfinite(t).all() for t in made.values())
    if "new_tokens" not in method:
        assert read(written).contract == read(Path(summary["adapter"])).contract


def test_it_goes_on_to_the_same_averages(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    whole = merge_settings(
        settings(optim={"steps": 8, "ema_posthoc": True}, run={"checkpoint_every": 4}), {"run": {"out": str(tmp_path / "whole")}}
    )
    train(config.parse(whole))
    for steps in (4, 8):
        train(config.parse(merge_settings(whole, {"optim": {"steps": steps}, "run": {"out": str(tmp_path / "parts")}})))
    for path in sorted((tmp_path / "whole" / "averages").iterdir()):
        assert path.read_bytes() == (tmp_path / "parts" / "averages" / path.name).read_bytes()


def test_bad_input_is_refused(train: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    train()
    for length, message in ((0.1, "kept no averages"), (0.5, "--length 0.5: must be between 0.01 and 0.25")):
        with pytest.raises(ConfigError, match=message):
            average.write(tmp_path / "out", length, None)
