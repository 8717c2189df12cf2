"""Every command of the README and every recipe runs, or at least parses."""

import py_compile
import re
import shlex
from pathlib import Path

import pytest
import tiny

from finetune import cli, config
from finetune.config.job import Job

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [c for c in re.findall(r"^    ((?:ft|python3|torchrun|accelerate) .*?)(?: +#.*)?$", README, re.M)]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


def test_the_counts_are_what_we_think() -> None:
    assert (len(COMMANDS), len(RECIPES), len(CONFIGS)) == (10, 1, 3)


def lora_words(command: str) -> list[str]:
    """What follows `ft`, also in `torchrun ... -m finetune lora ...`."""
    words = shlex.split(command)
    return words[1:] if words[0] == "ft" else words[words.index("finetune") + 1 :]


@pytest.mark.parametrize("command", [c for c in COMMANDS if "ft lora" in c or "finetune lora" in c])
def test_training_commands(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    tiny.folder(tmp_path / "imgs", 3)
    monkeypatch.chdir(tmp_path)
    words = lora_words(command)
    if "--processes" in words:  # tests/test_exactness.py runs two
        words[words.index("--processes") + 1] = "1"
    assert cli.run([*words, "--base", str(base), "--steps", "1"]) == 0


def test_generate_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.folder(tmp_path / "imgs", 3)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["lora", "--data", "imgs", "--base", str(base), "--steps", "1"]) == 0
    generate = next(c for c in COMMANDS if c.startswith("ft generate"))
    assert cli.run([*shlex.split(generate)[1:], "--steps", "2"]) == 0
    assert len(list((tmp_path / "pictures").glob("000-*.png"))) == 4 and (tmp_path / "pictures" / "grid.png").exists()
    assert cli.run(["models"]) == 0 and "tiny" in capsys.readouterr().out


def test_the_demo_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["demo", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "runs/demo/before-after.png" in said.replace("\\", "/") and (tmp_path / "runs" / "demo" / "before-after.png").exists()
    follow = [line.strip() for line in said.splitlines() if line.startswith("  ft generate")]
    assert cli.run([*shlex.split(follow[0])[1:], "--steps", "1"]) == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python3")])
def test_scripts_compile(command: str) -> None:
    py_compile.compile(str(ROOT / shlex.split(command)[1]), doraise=True)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 30 and lines[0].startswith("# ft lora --recipe ") and "memory" in lines[0]
    assert isinstance(config.resolve({"data": {"path": "x"}}, path), Job)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_accelerate_configs(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes >= 1


def test_links_and_folders_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    tree = re.findall(r"^    ((?:finetune/\w+|recipes|accelerate_configs|scripts|tests)/) ", README, re.M)
    assert len(tree) == 15 and all((ROOT / t).is_dir() for t in tree)
    assert {p.name for p in (ROOT / "finetune").iterdir() if p.is_dir() and p.name != "__pycache__"} == {
        t.split("/")[1] for t in tree if "finetune" in t
    }
