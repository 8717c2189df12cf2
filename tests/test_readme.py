"""Every command of the README and every recipe runs, or at least parses."""

import json
import py_compile
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from finetune import cli, config
from finetune.bases import DEMO_HELD_OUT
from finetune.cli.demo import SUBJECTS
from finetune.training.run import train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [c for c in re.findall(r"^    ((?:ft|python3|torchrun|accelerate) .*?)(?: +#.*)?$", README, re.M)]
TRAINING = re.findall(r"^    (ft .*)$", (ROOT / "docs" / "training.md").read_text(encoding="utf-8"), re.M)
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


def test_the_counts_are_what_we_think() -> None:
    assert (len(COMMANDS), len(TRAINING), len(RECIPES), len(CONFIGS)) == (29, 10, 24, 3)


def train_words(command: str) -> list[str]:
    """What follows `ft`, also in `torchrun ... -m finetune lora ...`."""
    words = shlex.split(command)
    return words[1:] if words[0] == "ft" else words[words.index("finetune") + 1 :]


@pytest.mark.parametrize("command", [c for c in COMMANDS if ("ft lora" in c or "finetune lora" in c) and "--recipe" not in c])
def test_training_commands(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    tiny.folder(tmp_path / "imgs", 3)
    monkeypatch.chdir(tmp_path)
    words = train_words(command)
    if "--processes" in words:  # tests/test_exactness.py runs two
        words[words.index("--processes") + 1] = "1"
    assert cli.run([*words, "--base", str(base), "--steps", "1"]) == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("ft ") and "--recipe tiny" in c])
def test_what_a_recipe_trained_is_drawn_by_the_command_below(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedded base itself, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune").symlink_to(ROOT / "finetune")
    few = ["--class-count", "2", "--set", "subject.class_steps=2"] if "dreambooth" in command else []
    assert cli.run([*train_words(command), "--steps", "1", *few]) == 0
    below = COMMANDS[COMMANDS.index(command) + 1]
    assert cli.run([*shlex.split(below)[1:], "--steps", "1"]) == 0
    assert list((tmp_path / "pictures").rglob("*.png"))


def test_the_commands_of_docs_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    """In their order: some go on from what others wrote. Pictures on the way are drawn by the commands of the README above, as they are."""
    tiny.folder(tmp_path / "imgs", 3)
    monkeypatch.chdir(tmp_path)
    for command in ["ft lora --data ./imgs", *TRAINING]:
        words = shlex.split(command)[1:]
        few = ["--base", str(base), "--steps", "2", "--fresh", "--no-samples"] if words[0] == "lora" else []
        assert cli.run([*words, *few]) == 0, command


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("ft data")])
def test_data_commands(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    tiny.folder(tmp_path / "imgs", 3)
    monkeypatch.chdir(tmp_path)
    assert cli.run([*shlex.split(command)[1:], "--base", str(base)]) == 0


def test_generate_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.folder(tmp_path / "imgs", 3)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["lora", "--data", "imgs", "--base", str(base), "--steps", "1"]) == 0
    generate = next(c for c in COMMANDS if c.startswith("ft generate"))
    assert cli.run([*shlex.split(generate)[1:], "--steps", "2"]) == 0
    assert len(list((tmp_path / "pictures").glob("000-*.png"))) == 4 and (tmp_path / "pictures" / "grid.png").exists()
    for command in (c for c in COMMANDS if c.startswith("ft adapter")):
        assert cli.run(shlex.split(command)[1:]) == 0, command
    assert cli.run(["models"]) == 0 and "tiny" in capsys.readouterr().out


def test_a_decoder_that_was_trained_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.folder(tmp_path / "imgs", 3)
    monkeypatch.chdir(tmp_path)
    command = next(c for c in COMMANDS if c.startswith("ft vae"))
    for line in (command, COMMANDS[COMMANDS.index(command) + 1]):
        assert cli.run([*shlex.split(line)[1:], "--steps", "1"]) == 0, line
    assert list((tmp_path / "pictures" / "vae").glob("*.png"))


def test_the_demo_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole, and drawn as a stranger sees it, by a slow test in tests/test_learning.py; here it holds out 4 pictures of 100 and draws 2
    names of 10, which takes 8 seconds and not 30."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held-out").mkdir()
    for file in sorted(DEMO_HELD_OUT.glob("*.*"))[:8]:  # a picture and its caption have one name
        shutil.copy(file, tmp_path / "held-out")
    monkeypatch.setattr("finetune.training.demo.DEMO_HELD_OUT", tmp_path / "held-out")
    monkeypatch.setattr("finetune.cli.demo.SUBJECTS", SUBJECTS[:2])
    assert cli.run(["demo", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "runs/demo/before-after.png" in said.replace("\\", "/") and (tmp_path / "runs" / "demo" / "before-after.png").exists()
    follow = [line.strip() for line in said.splitlines() if line.startswith("  ft generate")]
    assert cli.run([*shlex.split(follow[0])[1:], "--steps", "1"]) == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python3")])
def test_scripts_compile(command: str) -> None:
    py_compile.compile(str(ROOT / shlex.split(command)[1]), doraise=True)


# Of two that differ in a trigger word, one by default.
LATER = {"sd35-medium-subject"}
each_recipe = pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.slow] if p.stem in LATER else []) for p in RECIPES], ids=lambda p: p.name
)


@each_recipe
def test_recipes_say_what_they_cost(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    job = config.resolve({"data": {"path": "x"}}, path)
    assert len(lines) <= 30 and lines[0].startswith(f"# ft {job.command} --recipe {path.stem} ") and "memory" in lines[0]
    assert lines[0].rstrip(")").endswith(("measured", "estimated"))


# Counting a network of billions of parameters takes 4 seconds: of each large base one recipe, and the others by the slow tests.
LARGE = ("flux-dev-subject", "sd35-medium-subject", "sdxl-dreambooth", "sdxl-inpainting", "sdxl-pivotal", "sdxl-subject")


@pytest.mark.parametrize("path", [pytest.param(p, marks=[pytest.mark.slow] if p.stem in LARGE else [], id=p.name) for p in RECIPES])
def test_recipes_plan(path: Path, imgs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, lines = config.resolve({"data": {"path": "x"}}, path), path.read_text(encoding="utf-8").splitlines()
    words = shlex.split(lines[0].removeprefix("# ft ").partition("   (")[0])
    words[words.index("--data") + 1] = str(imgs)
    assert cli.run([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["adapted_layers"] >= 56 if job.method.kind == "lora" else plan["trainable_parameters"], plan


TINY = {  # known base -> its tiny pipeline
    "tiny": "sd", "sd15": "sd", "sd21": "sd-v", "sdxl": "sdxl", "flux-dev": "flux", "sd35-medium": "sd3",
    "sd15-inpainting": "sd-inpainting", "tiny-inpainting": "sd-inpainting", "sdxl-inpainting": "sdxl-inpainting",
}  # fmt: skip


@each_recipe
def test_recipes_train(path: Path, imgs: Path, bases: Callable[[str], Path], tmp_path: Path) -> None:
    own = config.read_yaml(path)
    small = {
        "model": {"base": str(bases(TINY[own["model"]["base"]]))}, "data": {"path": str(imgs), "resolution": 16},
        "optim": {"steps": 2, "warmup": 0}, "run": {"out": str(tmp_path / "out")},
    }  # fmt: skip
    if own.get("subject"):
        small["subject"] = {"class_count": 2, "class_steps": 2}
    summary = train(config.parse(config.precedence.merge_settings(own, small)))
    assert summary["files"] and all(Path(summary[kind]).exists() for kind in summary["files"])


def test_the_recipe_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["recipe", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipes"].keys() == {p.stem for p in RECIPES}
    assert cli.run(["recipe", "cp", "sdxl-style"]) == 0 and (tmp_path / "sdxl-style.yaml").exists()
    assert cli.run(["recipe", "cp", "sdxl-style"]) == 2 and "is there already" in capsys.readouterr().err
    assert cli.run(["recipe", "show", "sdxl-style"]) == 0 and "base: sdxl" in capsys.readouterr().out
    assert (
        cli.run(["recipe", "check", "tiny-style", "sdxl-style.yaml"]) == 0
        and "23,224,320 parameters of the denoiser" in capsys.readouterr().out
    )
    (tmp_path / "bad.yaml").write_text("model: {base: flux-dev}\nobjective: {weighting: min-snr}\n")
    (tmp_path / "worse.yaml").write_text("optim: {lr: fast, stps: 3}\nmethod: {targets: to_z}\n")
    assert cli.run(["recipe", "check", "bad.yaml", "worse.yaml"]) == 2
    err = capsys.readouterr().err
    assert "weighting min-snr: this base learns by flow matching" in err and "did you mean optim.steps" in err and "optim.lr" in err
    (tmp_path / "latin.yaml").write_bytes("caption: café".encode("latin-1"))
    for words in (["show", "."], ["show", "latin.yaml"], ["cp", "latin.yaml", "copy.yaml"], ["cp", "."]):
        assert cli.run(["recipe", *words]) == 2 and "not a readable YAML file" in capsys.readouterr().err, words
    assert cli.run(["recipe", "cp", "tiny-style", "new/folder/x.yaml"]) == 0 and (tmp_path / "new" / "folder" / "x.yaml").exists()
    capsys.readouterr()
    assert cli.run(["lora", "--recipe", "sdxl-stile", "--data", "x"]) == 2 and "did you mean sdxl-style?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny-token", "tiny-pivotal", *(pytest.param(p.stem, marks=pytest.mark.slow) for p in RECIPES)])
def test_the_recipes_that_ship_are_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipe", "check", name]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_accelerate_configs(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes >= 1


def test_links_and_folders_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    tree = re.findall(r"^    ((?:finetune/\w+|recipes|accelerate_configs|scripts|tests)/) ", README, re.M)
    assert len(tree) == 17 and all((ROOT / t).is_dir() for t in tree)
    assert {p.name for p in (ROOT / "finetune").iterdir() if p.is_dir() and p.name != "__pycache__"} == {
        t.split("/")[1] for t in tree if "finetune" in t
    }
