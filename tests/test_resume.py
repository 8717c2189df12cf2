"""A run that stops and goes on writes the bytes of one that never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import config
from finetune.errors import ConfigError
from finetune.training import checkpoint

Train = Callable[..., dict[str, Any]]


def adapter_bytes(summary: dict[str, Any]) -> bytes:
    return Path(summary["adapter"]).read_bytes()


def test_two_runs_with_one_seed_are_equal_and_with_another_are_not(train: Train, tmp_path: Path) -> None:
    written = [adapter_bytes(train(run={"out": str(tmp_path / n), "seed": s})) for n, s in (("a", 0), ("b", 0), ("c", 1))]
    assert written[0] == written[1]
    assert written[0] != written[2]


@pytest.mark.parametrize("k", range(1, 6))
def test_k_steps_and_the_rest_are_all_steps(train: Train, tmp_path: Path, k: int) -> None:
    # 7 pictures in batches of 2: the epoch ends in a partial batch, and the break falls on either side of it.
    same = {"method": {"dropout": 0.1}, "optim": {"ema": 0.9, "accumulate": 1}}
    whole = train(**same, run={"out": str(tmp_path / "whole")})
    parts = {"out": str(tmp_path / "parts")}
    train(**same | {"optim": {"ema": 0.9, "steps": k}}, run=parts)
    resumed = train(**same, run=parts)
    assert adapter_bytes(resumed) == adapter_bytes(whole)


def test_a_finished_run_does_nothing(train: Train, tmp_path: Path) -> None:
    first = train()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert train() == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_changed_settings_are_refused_by_name(train: Train) -> None:
    train()
    with pytest.raises(ConfigError, match=r"optim\.lr \(was 0\.001, now 0\.002\)"):
        train(optim={"lr": 2e-3})
    with pytest.raises(ConfigError, match="global batch"):
        train(optim={"batch": 3})
    with pytest.raises(ConfigError, match="6 steps already"):
        train(optim={"steps": 5})


def test_changed_pictures_are_refused(train: Train, settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    import tiny

    own = tiny.folder(tmp_path / "own")
    train(data={"path": str(own)})
    (own / "00.txt").write_text("another caption", encoding="utf-8")
    with pytest.raises(ConfigError, match="pictures and captions"):
        train(data={"path": str(own)})


def test_the_newest_valid_checkpoint_is_used(train: Train, tmp_path: Path) -> None:
    whole = train(run={"out": str(tmp_path / "whole")})
    out = tmp_path / "out"
    train(optim={"steps": 4}, run={"checkpoint_every": 2})
    state = out / "checkpoints" / "step-00000004" / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-1] ^= 1  # one bit, same size
    state.write_bytes(data)
    assert [p.name for p in checkpoint.valid(out / "checkpoints")] == ["step-00000002"]
    assert adapter_bytes(train()) == adapter_bytes(whole)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def command(settings: dict[str, Any], tmp_path: Path) -> list[str]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.dump(config.parse(settings)), encoding="utf-8")
    return [sys.executable, "-m", "finetune", "lora", "--recipe", str(recipe)]


def test_kill_at_any_time_and_the_same_command_again(settings: Callable[..., dict[str, Any]], train: Train, tmp_path: Path) -> None:
    long = {"optim": {"steps": 60}, "run": {"checkpoint_every": 1}}
    whole = train(optim=long["optim"], run=long["run"] | {"out": str(tmp_path / "whole")})
    words = command(settings(**long), tmp_path)
    out = tmp_path / "out"
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while not (out / "checkpoints" / "step-00000020").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.steps(out / "checkpoints") and not (out / "summary.json").exists()
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True)
    assert adapter_bytes(json.loads(done.stdout)) == adapter_bytes(whole)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_sigterm_saves_and_exits_143(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    words = command(settings(optim={"steps": 100_000}, run={"checkpoint_every": 100_000}), tmp_path)
    out = tmp_path / "out"
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "checkpoint saved" in said and "Traceback" not in said
    assert list(checkpoint.valid(out / "checkpoints"))
