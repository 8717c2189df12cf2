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
import torch
from parts import Train
from PIL import Image
from test_batches import mixed

from finetune import config
from finetune.config.precedence import merge_settings
from finetune.errors import ConfigError, Stopped
from finetune.evaluation import heldout
from finetune.results import checkpoint
from finetune.sampling import draw
from finetune.training.process import Process
from finetune.training.run import train as run_train


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


@pytest.mark.parametrize("name", ["sd-v", "sdxl", "flux", pytest.param("sd3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["lora", "textual-inversion"])
def test_two_parts_of_every_family_are_the_whole(train: Train, tmp_path: Path, bases: Callable[[str], Path], name: str, kind: str) -> None:
    same = merge_settings(KINDS[kind], {"model": {"base": str(bases(name))}, "data": {"resolution": 16}, "optim": {"ema": 0.9}})
    whole = train(**merge_settings(same, {"run": {"out": str(tmp_path / "whole")}}))
    parts = {"run": {"out": str(tmp_path / "parts")}}
    train(**merge_settings(same, parts, {"optim": {"steps": 3}}))
    resumed = train(**merge_settings(same, parts))
    assert whole["files"] == resumed["files"]
    assert all(Path(whole[k]).read_bytes() == Path(resumed[k]).read_bytes() for k in whole["files"])


def test_a_run_goes_on_exactly_without_what_was_cached(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"data": mixed(tmp_path / "data")}
    whole = train(**same, run={"out": str(tmp_path / "whole")})
    parts = {"out": str(tmp_path / "parts")}
    train(**same, optim={"steps": 3}, run=parts)
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "another cache"))
    assert adapter_bytes(train(**same, run=parts)) == adapter_bytes(whole)


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
    tiny.picture(50).save(own / "01.png")
    (own / "02.png").rename(own / "x.png")
    (own / "02.txt").rename(own / "x.txt")
    how = r"pictures and captions \(02\.png is gone; x\.png is new; 01\.png is another picture; 00\.png is with another caption"
    with pytest.raises(ConfigError, match=how):
        train(data={"path": str(own)})
    (tmp_path / "out" / "pictures.json").unlink()  # as of an older run
    with pytest.raises(ConfigError, match=r"other settings: pictures and captions$"):
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
    return [sys.executable, "-m", "finetune", config.parse(settings).command, "--recipe", str(recipe)]


KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dreambooth": {
        "method": {"kind": "full", "text_encoder": True}, "optim": {"ema": 0.9},
        "subject": {"token": "sks", "class_word": "disc", "class_count": 3, "class_steps": 2},
    },
    "textual-inversion": {"method": {"kind": "none", "new_tokens": ["<x>"], "vectors": 2}},
    "vae": {"method": {"kind": "decoder"}, "data": {"caption_dropout": 0.0, "holdout": "0.3"}, "optim": {"ema": 0.9}},
    "mixed data": {},  # two sources, several sizes, masks, tags in other orders: see `mixed`
}  # fmt: skip


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] if k in ("textual-inversion", "vae") else []) for k in KINDS])
def test_kill_at_any_time_and_the_same_command_again(
    settings: Callable[..., dict[str, Any]], train: Train, tmp_path: Path, kind: str
) -> None:
    """A LoRA is gone on with by the command itself, the others by this process: a start of the command takes 3 seconds."""
    long = merge_settings(KINDS[kind], {"optim": {"steps": 45}, "run": {"checkpoint_every": 1}})
    if kind == "mixed data":
        long["data"] = mixed(tmp_path / "data")
    whole = train(**merge_settings(long, {"run": {"out": str(tmp_path / "whole"), "checkpoint_every": 45}}))
    words = command(settings(**long), tmp_path)
    out = tmp_path / "out"
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while not (out / "checkpoints" / "step-00000008").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.steps(out / "checkpoints") and not (out / "summary.json").exists()
    if kind == "lora":
        done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True)
        again = json.loads(done.stdout)
    else:
        again = train(**long)
    assert again["files"] == whole["files"]
    for a, b in ((Path(whole[k]), Path(again[k])) for k in whole["files"]):
        inside = [p.relative_to(a) for p in a.rglob("*") if p.is_file()] if a.is_dir() else [Path()]
        assert inside and all((a / f).read_bytes() == (b / f).read_bytes() for f in inside)


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


# What an earlier run leaves


def test_a_checkpoint_that_was_just_written_is_never_pruned(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2)}
    for step in (100, 200, 300):
        checkpoint.save(tmp_path, step, tensors, {}, keep=3)
    for step in (200, 300):
        (tmp_path / f"step-{step:08d}" / "state.json").write_text("{}")
    (tmp_path / ".tmp-step-00000300-1").mkdir()
    checkpoint.save(tmp_path, 150, tensors, {}, keep=1)
    assert [p.name for p in checkpoint.valid(tmp_path)] == ["step-00000150"]
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000150"]


def test_a_run_that_died_before_its_first_checkpoint_leaves_nothing_behind(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(method={"rank": 2}, data={"holdout": "0.4"}, run={"holdout_every": 1})
    assert (tmp_path / "out" / "checkpoints" / "best.safetensors").exists()
    monkeypatch.undo()
    train()
    lines = [json.loads(x) for x in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [6] and not (tmp_path / "out" / "lora-best.safetensors").exists()


@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.slow), "during", "during the last"])
def test_a_stop_at_a_measuring_step_loses_no_measurement(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    drawn = {"sample_prompt": ["x", "y"], "sample_every": 3}
    same: dict[str, dict[str, Any]] = {"data": {"holdout": "0.4"}, "run": {"holdout_every": 3, "log_every": 100, **drawn}}
    whole = train(**same | {"run": same["run"] | {"out": str(tmp_path / "whole")}})
    if when == "before":

        def stopping(self: Process) -> bool:
            if self.polls == 2:
                self.stop.number = 15
                return True
            return count(self)

        monkeypatch.setattr(Process, "stopping", stopping)
    else:  # steps 0 and 3 draw two pictures and measure, step 6 measures
        at, calls = ("draw", 3) if when == "during" else ("losses", 3)
        module: Any = draw if at == "draw" else heldout
        real, seen = getattr(module, at), []

        def stopped_by(*a: Any, **k: Any) -> Any:
            seen.append(1)
            if len(seen) == calls:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*a, **k)

        monkeypatch.setattr(module, at, stopped_by)
    with pytest.raises(Stopped) as stopped:
        train(**same)
    assert stopped.value.exit_code == 143
    monkeypatch.undo()
    assert checkpoint.steps(tmp_path / "out" / "checkpoints")[0] == (6 if when == "during the last" else 3)
    resumed = train(**same)
    measured = [
        [(x["step"], x["held_out_loss"]) for x in map(json.loads, lines) if "held_out_loss" in x]
        for lines in ((tmp_path / n / "metrics.jsonl").read_text().splitlines() for n in ("whole", "out"))
    ]
    assert measured[0] == measured[1] and [s for s, _ in measured[0]] == [0, 3, 6]
    assert Path(resumed["best"]).read_bytes() == Path(whole["best"]).read_bytes()
    pictures = [sorted(p.name for p in (tmp_path / n / "samples").iterdir()) for n in ("whole", "out")]
    assert pictures[0] == pictures[1]


def count(process: Process) -> bool:
    process.polls += 1
    return False


def test_new_prompts_are_not_shown_beside_another_prompts_picture(train: Train, tmp_path: Path) -> None:
    train(run={"sample_prompt": ["red"]})
    train(run={"sample_prompt": ["blue"]}, optim={"steps": 8})
    samples = tmp_path / "out" / "samples"
    assert len(list(samples.glob("step-000000-*.png"))) == 1
    with Image.open(samples / "step-000008.png") as sheet, Image.open(samples / "step-000006.png") as with_base:
        assert sheet.width < with_base.width, "there is no base picture of the new prompt"


def test_a_longer_cosine_schedule_is_said(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train(optim={"schedule": "cosine"})
    train(optim={"schedule": "cosine", "steps": 8})
    assert "the cosine schedule of 6 steps is now one of 8" in capsys.readouterr().err


def test_fresh_removes_nothing_of_others(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("samples/precious.png", "checkpoints/mine.txt", "lora.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    job = config.parse(settings())
    first = run_train(job, fresh=True)
    assert run_train(config.parse(settings(method={"rank": 2})), fresh=True)["steps"] == first["steps"]
    assert all((out / n).read_text() == "mine" for n in ("samples/precious.png", "checkpoints/mine.txt", "lora.txt"))


def test_a_peft_folder_replaces_no_other_folder(train: Train, tmp_path: Path) -> None:
    (tmp_path / "out" / "cats").mkdir(parents=True)
    (tmp_path / "out" / "cats" / "tom.txt").write_text("mine")
    with pytest.raises(ConfigError, match="cats: is there already, and is no adapter"):
        train(run={"name": "cats", "format": "peft"})
    assert (tmp_path / "out" / "cats" / "tom.txt").read_text() == "mine"
