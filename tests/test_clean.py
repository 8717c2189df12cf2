"""`ft clean` and `ft cache`: what goes, in which order, and what never does."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune import cli, config, files
from finetune.data import prune
from finetune.errors import ConfigError
from finetune.results import checkpoint, clean, lock, stored
from finetune.run_folder import RunFolder

GONE = 2**22 + 1  # the number of no process: more than Linux gives


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def runs(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`runs/` with two finished runs of three checkpoints, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        run(tmp_path / "runs" / name)
    return tmp_path / "runs"


def run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    files.write_text(folder / "run.yaml", config.dump(config.parse({"data": {"path": "x"}})))
    files.write_json(folder / "summary.json", {"files": ["adapter"], "adapter": f"elsewhere/{folder.name}.safetensors"})
    files.write_bytes(folder / f"{folder.name}.safetensors", b"x" * 100)
    for step in (1, 2, 3):
        save(folder / "checkpoints", step)
    return folder


def save(root: Path, step: int) -> None:
    checkpoint.save(root, step, {}, {}, keep=9)


def steps(folder: Path) -> list[int]:
    return checkpoint.steps(folder / "checkpoints")


def test_the_newest_whole_checkpoint_stays(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (RunFolder(runs / "two").checkpoint(3) / "state.json").write_text("damaged")
    assert cli.run(["clean", "--dry-run"]) == 0 and (steps(runs / "one"), steps(runs / "two")) == ([3, 2, 1], [3, 2, 1])
    assert capsys.readouterr().out.count("checkpoint ") == 4
    assert cli.run(["clean", "--yes"]) == 0 and (steps(runs / "one"), steps(runs / "two")) == ([3], [2])
    assert (runs / "one" / "one.safetensors").exists() and "freed " in capsys.readouterr().out
    assert cli.run(["clean", "--yes"]) == 0 and "nothing to free" in capsys.readouterr().out


def test_without_a_whole_checkpoint_and_with_strange_files_all_stay(runs: Path) -> None:
    for step in (1, 2, 3):
        (RunFolder(runs / "one").checkpoint(step) / "manifest.json").unlink()
    (RunFolder(runs / "two").checkpoint(1) / "mine.txt").write_text("x")
    (runs / "two" / "checkpoints" / "step-00000002").rename(runs / "aside")
    (runs / "two" / "checkpoints" / "step-00000002").symlink_to(runs / "aside")
    assert clean.look([runs / "one", runs / "two"]).items == [] and cli.run(["clean", "--yes"]) == 0
    assert (steps(runs / "one"), steps(runs / "two")) == ([3, 2, 1], [3, 2, 1]) and (runs / "aside" / "state.json").exists()


def test_only_what_killed_processes_left_goes(runs: Path) -> None:
    one = runs / "one"
    (one / "model").mkdir()
    left = [one / f".tmp-one.safetensors-{GONE}", one / "checkpoints" / f".tmp-step-00000004-{GONE}", one / f".old-model-{GONE}"]
    left += [one / f".probe-{GONE}", one / ".job.yaml"]
    last = [one / f".old-tok-{GONE}", one / f".tmp-tok-{GONE}"]  # killed between two renames: the folder is in one of them
    mine = [one / f".tmp-x-{os.getpid()}", one / ".tmp-notes", one / f"tmp-x-{GONE}", one / ".env"]
    for path in [*left, *last, *mine]:
        path.write_text("x")
    found = clean.look([one])
    assert {i.path for i in found.items if i.kind == "half-written"} == set(left)
    assert cli.run(["clean", "--yes"]) == 0
    assert not [p for p in left if p.exists()] and all(p.exists() for p in [*last, *mine])


def test_what_is_half_written_in_the_cache_goes_after_an_hour(runs: Path, cache: Path) -> None:
    base, pictures, new = (cache / "bases" / f".tmp-x-{GONE}", cache / "class-pictures" / f".tmp-x-{GONE}", cache / f".tmp-y-{GONE}")
    for path in (base, pictures, new):
        path.mkdir(parents=True)
        (path / "weights").write_bytes(b"x" * 1000)
    for path in (base, pictures):
        os.utime(path, (0, 0))
    assert clean.look([]).size == 2000
    assert cli.run(["clean", "--yes"]) == 0 and [base.exists(), pictures.exists(), new.exists()] == [False, False, True]


def test_a_run_in_use_stays(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock.held(runs / "one"):
        assert cli.run(["clean", "--yes"]) == 0
        assert (steps(runs / "one"), steps(runs / "two")) == ([3, 2, 1], [3])
        assert f"runs/one: in use: process {os.getpid()}" in capsys.readouterr().err
        assert cli.run(["clean", "--whole", "--yes", "runs/one"]) == 0 and (runs / "one" / "one.safetensors").exists()
    found = clean.look([runs / "one"])
    with lock.held(runs / "one"):  # it begins between the question and the answer
        done = clean.remove(found.items)
    assert not done.items and runs / "one" in done.stays and steps(runs / "one") == [3, 2, 1]
    save(runs / "one" / "checkpoints", 4)
    assert {i.path.name for i in clean.remove(found.items).items} == {"step-00000001", "step-00000002"}, "only what was shown"


def test_whole_runs_go_by_name_and_what_is_not_theirs_stays(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["clean", "--whole", "--yes"]) == 2 and "name the runs" in capsys.readouterr().err
    (runs / "two" / "notes.txt").write_text("mine")
    assert cli.run(["clean", "--whole", "--yes", "runs/one", "runs/two"]) == 0
    assert [p.relative_to(runs).as_posix() for p in sorted(runs.rglob("*"))] == ["two", "two/notes.txt"]
    assert "two: holds what no run wrote: notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["..", "../precious", "/", "precious", ""])
def test_a_summary_cannot_point_elsewhere(name: str, runs: Path) -> None:
    (runs / "model_index.json").write_text("{}")
    for place in (runs / "precious", runs / "one" / "precious"):
        place.mkdir()
        (place / "x").write_text("x")
    files.write_json(runs / "one" / "summary.json", {"files": ["model"], "model": name})
    assert cli.run(["clean", "--whole", "--yes", "runs/one"]) == 0
    assert (runs / "precious" / "x").exists() and (runs / "one" / "precious" / "x").exists() and steps(runs / "two") == [3, 2, 1]


def test_what_is_no_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipes" / "run.yaml"
    files.write_text(recipe, "optim: {steps: 3}\n")
    save(tmp_path / "recipes" / "checkpoints", 1)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "run").symlink_to(runs / "one")
    for place, told in (("recipes", "holds no runs"), ("linked", "holds no runs"), ("nowhere", "no such folder")):
        assert cli.run(["clean", "--yes", place]) == 3 and told in capsys.readouterr().err
    assert recipe.exists() and steps(runs / "one") == [3, 2, 1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_asks(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for typed, code, left in ((io.StringIO("y\n"), 2, [3, 2, 1]), (Terminal("n\n"), 0, [3, 2, 1]), (Terminal("y\n"), 0, [3])):
        monkeypatch.setattr(sys, "stdin", typed)
        assert cli.run(["clean"]) == code and steps(runs / "one") == left
    assert cli.run(["clean", "--json"]) == 0, "there is nothing to ask about"


def test_clean_for_scripts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["clean", "--json"]) == 2 and "--yes" in json.loads(capsys.readouterr().out)["error"]["hint"]
    assert cli.run(["clean", "--json", "--dry-run", "runs/one"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert cli.run(["clean", "--json", "--yes", "runs/one"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert planned["can_go"] == done["removed"] and len(done["removed"]) == 2 and done["bytes"] == planned["bytes"] > 0
    assert not planned["removed"] and not done["can_go"]


def test_what_the_system_keeps_is_said(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("finetune.results.clean.files.remove", lambda path: None)
    assert cli.run(["clean", "--yes", "runs/one"]) == 0
    said = capsys.readouterr()
    assert "freed 0 B" in said.out and said.err.count("does not let it be removed") == 2


def test_a_cleaned_run_goes_on(train: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(optim={"steps": 2}, run={"checkpoint_every": 1})
    assert steps(tmp_path / "out") == [2, 1] and cli.run(["clean", "--yes", str(tmp_path / "out")]) == 0 and steps(tmp_path / "out") == [2]
    capsys.readouterr()
    train(optim={"steps": 3}, run={"checkpoint_every": 1})
    assert "resuming from step 2" in capsys.readouterr().err


# The cache


def shard(cache: Path, kind: str, space: str, name: str, keys: list[bytes], used: float) -> Path:
    path = cache / kind / (space * 32) / f"{name * 32}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 32)
    save_file({"key": rows, "mean": np.zeros((len(keys), 1000), np.float32)}, path)
    os.utime(path, (used, used))
    return path


def key(letter: str) -> bytes:
    return letter.encode() * 32


def note(out: Path, space: Path, keys: list[bytes], used: float) -> None:
    prune.note_use(out, {space: keys})
    os.utime(next(n.path for n in prune.use_notes() if n.out == out.resolve()), (used, used))


def test_the_longest_unused_goes_first(cache: Path, tmp_path: Path) -> None:
    """Use is a run's, not the file's own time; class pictures and bases note theirs by themselves."""
    old = shard(cache, "latents", "a", "1", [key("a"), key("b")], 100)
    new = shard(cache, "latents", "a", "2", [key("c")], 200)
    text = shard(cache, "texts", "b", "3", [key("d")], 300)
    note(tmp_path / "run", old.parent, [key("b")], 500)
    pictures, base = cache / "class-pictures" / ("c" * 12), cache / "bases" / ("d" * 64)
    for folder, name, used in ((pictures, f"class-{'c' * 12}-000000.png", 400), (base, "model_index.json", 150)):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"x" * 1000)
        os.utime(folder, (used, used))
    (cache / "bases" / "mine").mkdir()
    (cache / "latents" / "mine.txt").write_text("x")
    assert [e.path for e in stored.entries()] == [base, new, text, pictures, old]
    total = stored.total()
    assert total == sum(e.size for e in stored.entries())
    assert [e.path for e in stored.shrunk(total)[0]] == [] and [e.path for e in stored.shrunk(total - 1)[0]] == [base]
    assert [e.path for e in stored.shrunk(old.stat().st_size)[0]] == [base, new, text, pictures]


def test_nothing_of_a_running_run_goes(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, now = tmp_path / "run", time.time()
    read = shard(cache, "latents", "a", "1", [key("a")], 100)
    written = shard(cache, "latents", "a", "2", [key("b")], now + 5)  # since it began, and not noted yet
    unused = shard(cache, "texts", "b", "3", [key("c")], 200)
    (base := cache / "bases" / ("d" * 64)).mkdir(parents=True)
    files.write_text(base / "x", "x")
    os.utime(base, (0, 0))
    with lock.held(out):
        note(out, read.parent, [key("a")], 150)
        prune.note_beginning(out)
        files.touch(base)
        assert cli.run(["cache", "prune", "--max-size", "0"]) == 0
        assert [p.exists() for p in (read, written, base, unused)] == [True, True, True, False]
        assert "the rest is used by runs" in capsys.readouterr().err
        assert cli.run(["cache", "ls"]) == 0 and capsys.readouterr().out.count(f"in use: process {os.getpid()}") == 2
    assert next(iter(prune.use_notes())).used, "what a run used before is still known when it begins again"
    assert cli.run(["cache", "prune", "--max-size", "0"]) == 0 and stored.entries() == [] and not base.exists()


def test_pictures_that_no_base_drew_stay(cache: Path) -> None:
    folder = cache / "class-pictures" / ("c" * 12)
    folder.mkdir(parents=True)
    drawn, mine, other = folder / f"class-{'c' * 12}-000000.png", folder / "dog.png", folder / "class-mine.png"
    for path in (drawn, mine, other):
        path.write_bytes(b"x")
    assert cli.run(["cache", "prune", "--max-size", "0", "--dry-run"]) == 0 and drawn.exists()
    assert cli.run(["cache", "prune", "--max-size", "0"]) == 0
    assert (drawn.exists(), mine.exists(), other.exists()) == (False, True, True)


def test_the_cache_for_scripts(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(cache, "latents", "a", "1", [key("a")], 100)
    (cache / "latents" / ("a" * 32) / f"{'2' * 32}.safetensors").write_bytes(b"damaged")
    assert cli.run(["cache", "ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["folder"], len(listed["entries"]), listed["entries"][0]["about"]) == (str(cache), 1, "files: 2")
    assert cli.run(["cache", "prune", "--json", "--max-size", "0"]) == 0
    pruned = json.loads(capsys.readouterr().out)
    assert pruned["bytes_left"] == 0 and sum(e["bytes"] for e in pruned["removed"]) == listed["bytes"]
    assert not (cache / "latents" / ("a" * 32)).exists()


def test_a_run_notes_the_use_of_class_pictures(imgs: Path, base: Path, cache: Path, tmp_path: Path) -> None:
    line = ["dreambooth", "--data", str(imgs), "--base", str(base), "--token", "sks", "--class", "dog", "--class-count", "2"]
    line += ["--set", "subject.class_steps=2", "--steps", "1", "--adapter", "lora"]
    assert cli.run([*line, "--out", str(tmp_path / "one")]) == 0
    (entry,) = [e for e in stored.entries() if e.kind == stored.CLASSES]
    os.utime(entry.path, (0, 0))
    assert cli.run([*line, "--out", str(tmp_path / "two")]) == 0
    (entry,) = [e for e in stored.entries() if e.kind == stored.CLASSES]
    assert time.time() - entry.used < 60


@pytest.mark.parametrize(("text", "count"), [("10GB", 10**10), ("1.5 GiB", 3 * 2**29), ("500m", 5 * 10**8), ("0", 0), ("7B", 7)])
def test_sizes(text: str, count: int) -> None:
    assert stored.size_of(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "nan", "1e9", "10 parsecs", "1.2.3GB", "\u0661GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        stored.size_of(text)


def test_neither_loads_torch(runs: Path, cache: Path) -> None:
    shard(cache, "latents", "a", "1", [key("a")], 100)
    program = """
import sys
from finetune import cli
for line in (["clean", "--yes"], ["clean", "--whole", "--yes", "runs"], ["cache", "ls"], ["cache", "prune", "--max-size", "0"]):
    assert cli.run(line) == 0
sys.exit(9 if "torch" in sys.modules or "diffusers" in sys.modules else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not any(runs.iterdir()) and not stored.entries()
