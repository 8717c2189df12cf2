"""Words drawn at random for every flag of every command: each command line ends in a named refusal, or in what was asked for."""

import contextlib
import io
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import typer

from finetune import cli

ROOT: Any = typer.main.get_command(cli.app)
COUNTS = "0 1 2 3 16 17 18 24 32 1000 1001 -1 99999999999999999999".split()
LARGE = ("1000", "1001")  # of pictures' sides: those take minutes
NUMBERS = "0 1 2 0.5 1e-3 7 100 -1 nan inf -inf 1e400 1e30 0x10 \u0661 1_0 x".split()
WORDS = ["", " ", "x", "a b", "{name}", "{nmae}", "é", "😀", "x\udcff", "x\n", "\x1b[2J", "-", "--", "~nosuch/x", "x" * 300, "a/" * 200]
WORDS += [r"re:(", r"re:.*", "none", "auto", "true", "null", "{a|b", "a,b", "sks", "dog", "<x>", "owner/name", "C:\\x:0.5", ":", "x:nan"]
PLACES = [
    "imgs",
    "empty",
    "file",
    "none",
    "file/x",
    "one.yaml",
    "bad.yaml",
    "x.safetensors",
    "run",
    "run/lora.safetensors",
    "run/lora-tok.safetensors",
    "run/checkpoints",
    "run/checkpoints/step-1",
]
SETS = [
    "optim.steps=2", 'data.path="a\\0b"', 'run.sample_prompt=["\\ud800"]', 'optim.lr_pattern={"(": 1}', 'method.rank_pattern={"[": 2}',
    "data.sources=[{path: x}, 3]", "data.background=[]", "optim.betas=[1]", "run=3", "a=b", "a.b=c", "=", ".", "x.y=*a", "x.y={{",
]  # fmt: skip
# Commands that would take long, leave the folder or empty it, and flags that end the command.
LEFT_OUT = {"demo", "caption", "clean"}


def commands(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that call it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, one in command.commands.items():
        if name not in LEFT_OUT:
            yield from commands(one, (*path, name))


COMMANDS = dict(commands())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A folder that holds one of everything that a word may name."""
    root = tmp_path_factory.mktemp("flags")
    tiny.folder(root / "imgs", 3)
    (root / "empty").mkdir()
    (root / "file").write_bytes(b"x")
    (root / "one.yaml").write_text("optim: {steps: 1}\n")
    (root / "bad.yaml").write_text("optim: [\n")
    (root / "x.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    words = ["--data", str(root / "imgs"), "--base", str(base), "--steps", "1", "--out", str(root / "run")]
    assert cli.run(["lora", *words, "--new-token", "tok", "--trigger", "tok"]) == 0
    assert (root / "run" / "lora-tok.safetensors").exists()
    return root


def fitting(flag: str, option: Any, base: Path) -> list[str]:
    """Words of the kind that a flag takes: some it can use, and some it must refuse."""
    own = {
        "--base": [str(base)], "--data": ["imgs"], "--token": ["sks", "<x>"], "--class": ["dog"], "--prompt": ["a"], "--set": SETS,
        "--adapter": ["run/lora.safetensors", "run/lora.safetensors:0.5", "lora", "lokr", "run", "run:0.5", "run/checkpoints/step-1"],
        "--embedding": ["run/lora-tok.safetensors", "run"],
        "--to": ["diffusers", "peft", "full", "svd"], "--recipe": ["one.yaml", "tiny-style"], "--out": ["made", "imgs/made"],
    }  # fmt: skip
    metavar, kind = str(option.metavar or ""), option.type_descriptor.annotation
    if flag in own:
        return own[flag]
    if metavar == "N" or kind is int:
        return COUNTS
    if metavar == "NUMBER" or kind is float:
        return NUMBERS
    return metavar.split("|") if "|" in metavar else [*PLACES, "a", "red disc"]


def draw_words(dice: random.Random, base: Path) -> list[str]:
    """A command with some of its flags, most of them with words of their kind and some with what nobody should type."""
    path, command = dice.choice([*COMMANDS.items(), *((p, c) for p, c in COMMANDS.items() if len(p) == 1 and len(c.params) > 9)])
    options = {p.opts[0]: p for p in command.params if p.opts[0].startswith("--") and p.opts[0] != "--help"}
    words = list(path)
    chosen = {f for f in ("--base", "--data", "--token", "--class", "--prompt") if f in options and dice.random() < 0.95}
    chosen |= set(dice.sample(list(options), min(len(options), dice.randint(0, 3))))
    for flag in sorted(chosen):
        kind = fitting(flag, options[flag], base) if dice.random() < 0.9 else [*COUNTS, *NUMBERS, *WORDS, *PLACES]
        if flag in ("--resolution", "--width", "--height"):
            kind = [word for word in kind if word not in LARGE]
        words += [flag] if options[flag].is_flag else [flag, dice.choice(kind)]
    for one in (p for p in command.params if not p.opts[0].startswith("--")):
        words += _alone(one, dice)
    return words + _few(path, options, words, dice)


def _alone(argument: Any, dice: random.Random) -> list[str]:
    """Words without a flag; a place of pictures is mostly the one that --data has."""
    if argument.name not in ("pictures", "prompts"):
        return [dice.choice(["run/lora.safetensors", "run", "tiny-style", *PLACES, *WORDS])]
    fits = ["imgs", "imgs/"] if argument.name == "pictures" else ["a", "red disc"]
    return [dice.choice(fits if dice.random() < 0.8 else [*PLACES, *WORDS]) for _ in range(dice.choice([0, 0, 0, 1, 1, 2]))]


def _few(path: tuple[str, ...], options: Mapping[str, Any], words: list[str], dice: random.Random) -> list[str]:
    """What keeps a command short."""
    if path == ("generate",):
        return ["--count", "1"] if "--steps" in options and dice.random() < 0.3 else ["--count", "1", "--steps", "2"]
    if "--dry-run" not in options:
        return []
    if dice.random() < 0.6:
        return ["--dry-run"]
    few = ["--class-count", "2", "--set", "subject.class_steps=2"] if "--class" in options else []
    few += ["--no-samples"] if "--sample-prompt" not in words and dice.random() < 0.9 else []
    return ["--steps", "1", "--batch", "2", "--accumulate", "1", "--fresh", *few]


def ends_well(words: list[str]) -> None:
    """One exit code of the documented ones; with --json one object."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(words)
    assert code in (0, 1, 2, 3, 4, 5), words
    assert "Traceback" not in out.getvalue() + err.getvalue(), words
    assert code == 0 or out.getvalue() or "error: " in err.getvalue(), words
    if "--json" in words and code:
        assert json.loads(out.getvalue())["exit_code"] == code, words


def sweep(count: int, seed: int, base: Path) -> None:
    dice, failed = random.Random(seed), dict[str, list[str]]()  # noqa: S311
    for _ in range(count):
        words = draw_words(dice, base)
        try:
            ends_well(words)
        except Exception as e:  # all of them at once
            failed.setdefault(f"{type(e).__name__}: {str(e)[:90]}", words)
    assert not failed, "\n".join(f"{e}\n    {w}" for e, w in failed.items())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_no_command_line_ends_in_a_traceback(seed: int, place: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 of them."""
    monkeypatch.chdir(place)
    sweep(100, seed, base)


def test_some_command_lines(place: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    sweep(25, 1000, base)


def test_every_command_is_drawn() -> None:
    assert len(COMMANDS) == 23 and ("data", "check") in COMMANDS and ("ti",) in COMMANDS
