"""What is damaged on the disk is found: made anew, named, or mended with a word; never trained on, and never a traceback."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parts import Train

from finetune import config, files
from finetune.cli import run as ft
from finetune.data import index
from finetune.errors import DataError
from finetune.results import checkpoint, finished, summary
from finetune.run_folder import RunFolder
from finetune.training import average


def flip(path: Path, times: tuple[int, int] | None = None) -> None:
    """One bit in the middle of a file, whose times stay as they were."""
    found = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.fixture
def half(train: Train, tmp_path: Path) -> Path:
    """The folder of a run that was broken off behind its third step of six."""
    train(data={"holdout": "0.3"}, optim={"steps": 3}, run={"checkpoint_every": 1, "holdout_every": 1})
    out = tmp_path / "out"
    for name in ("summary.json", "finished.json", "lora.safetensors", "lora-best.safetensors"):
        (out / name).unlink()
    return out


GARBAGE = [b"", b"\xff\xfe\0", b"[" * 5000, b"{}", b"[]", b'"text"', b"1e999", b'{"step": "x"}\n{"step": 1e999}\nnull\n']


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_records_of_any_content_end_in_no_traceback(
    garbage: bytes, half: Path, settings: Callable[..., dict[str, Any]], train: Train, imgs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on from its checkpoint all the same."""
    for name in ("summary.json", "metrics.jsonl", "pictures.json", "finished.json", "run.yaml"):
        (half / name).write_bytes(garbage)
    assert ft(["generate", "x", "--adapter", str(half), "--out", str(half / "drawn")]) in (2, 3)
    said = train(data={"holdout": "0.3"}, optim={"steps": 4}, run={"checkpoint_every": 1, "holdout_every": 1})
    assert said["steps"] == 4 and "resuming from step 3" in capsys.readouterr().err
    for line in (half / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["step"] <= 4


def test_a_manifest_that_lists_less_is_not_whole(half: Path) -> None:
    newest = RunFolder(half).checkpoint(3)
    assert checkpoint.is_valid(newest)
    manifest = json.loads((newest / "manifest.json").read_text())
    for kept in ({}, {k: v for k, v in manifest.items() if k == "state.json"}):
        (newest / "manifest.json").write_text(json.dumps(kept))
        assert not checkpoint.is_valid(newest)


def test_a_damaged_best_state_is_not_written(half: Path, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    flip(half / "checkpoints" / "best.safetensors")
    said = train(data={"holdout": "0.3"}, optim={"steps": 3}, run={"checkpoint_every": 1, "holdout_every": 1})
    assert "best.safetensors is damaged" in capsys.readouterr().err
    assert said["best_step"] is None and not (half / "lora-best.safetensors").exists()


def test_a_damaged_average_is_named(train: Train, tmp_path: Path) -> None:
    train(optim={"steps": 4, "ema_posthoc": True}, run={"checkpoint_every": 2})
    flip(tmp_path / "out" / "averages" / "step-00000002.safetensors")
    with pytest.raises(DataError, match=r"step-00000002.safetensors: is damaged"):
        average.write(tmp_path / "out", 0.1, None)


def test_a_finished_file_with_a_flipped_bit_is_written_anew(train: Train, tmp_path: Path) -> None:
    first = Path(train()["adapter"])
    whole = first.read_bytes()
    job = config.parse(config.read_yaml(tmp_path / "out" / "run.yaml"))
    assert finished.summary(job) is not None
    flip(first)
    said = summary.read(tmp_path / "out")
    assert not summary.is_whole(said)
    assert finished.summary(job) is None
    assert Path(train()["adapter"]).read_bytes() == whole


@pytest.mark.parametrize(("value", "sealed"), [
    ("null", True), ("[1]", True), ("x", False), ('["a", 1, 2, [3], true, false]', True), ('["a", 20, 14, [], false, false]', False),
])  # fmt: skip
def test_the_index_may_say_anything(value: str, sealed: bool, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    first = Path(train()["adapter"]).read_bytes()
    with sqlite3.connect(files.cache_root() / "index.sqlite") as base:
        base.execute("UPDATE found SET value = ?", (index._sealed(value) if sealed else value,))
    base.close()
    assert Path(train(run={"out": str(tmp_path / "again")})["adapter"]).read_bytes() == first


def test_an_index_that_is_none_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_CACHE", str(tmp_path))
    (tmp_path / "index.sqlite").write_bytes(b"\xff" * 5000)
    place = index.Index("x", 1)
    place.put([("a", [1])])
    assert place.get(["a"]) == [[1]]
    place.close(forget=False)


def test_what_a_killed_process_left_goes_at_the_next_start(train: Train, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train()
    gone, mine = 2**22 - 1, os.getpid()
    left = [out / f".tmp-model-{gone}.1", out / f".tmp-lora.safetensors-{mine}.1", out / "checkpoints" / f".tmp-x-{gone}"]
    stays = [out / f".tmp-y-{mine}.{files._began(mine)}", out / ".tmp-notes"]
    for path in (*left, *stays):
        path.mkdir()
        (path / "weights").write_bytes(b"x")
    shutil.rmtree(out / "samples", ignore_errors=True)
    train(optim={"steps": 7})
    assert not any(path.exists() for path in left) and all(path.exists() for path in stays)


@pytest.mark.parametrize("damaged", [b"", b"\x89PNG\r\n"])
def test_a_damaged_picture_of_the_base_is_left_out(
    damaged: bytes, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = {"sample_prompt": ["a disc"], "sample_every": 2}
    train(data={"resolution": 16}, optim={"steps": 2}, run=drawn)
    (picture,) = (tmp_path / "out" / "samples").glob("step-000000-*.png")
    picture.write_bytes(damaged)
    said = train(data={"resolution": 16}, optim={"steps": 3}, run=drawn)
    assert Path(said["sheet"]).exists() and "the sheet is without it" in capsys.readouterr().err


def test_the_last_whole_copy_goes_when_there_is_another(train: Train, tmp_path: Path) -> None:
    """Killed between two renames: the old model and the new one both stand aside."""
    how: dict[str, Any] = {"method": {"kind": "full"}, "optim": {"steps": 1, "lr": 1e-5}}
    train(**how)
    out, gone = tmp_path / "out", 2**22 - 1
    (out / "summary.json").unlink()
    shutil.copytree(out / "model", out / f".tmp-model-{gone}.1")
    (out / "model").rename(out / f".old-model-{gone}.1")
    train(**how)
    assert (out / "model").is_dir() and not list(out.glob(".*-model-*"))
