"""Words drawn at random for every flag of every command: each command line ends in a named refusal, or in what was asked for."""

import contextlib
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import typer

from finetune import cli

ROOT: Any = typer.main.get_command(cli.app)
NUMBERS = "0 1 2 -1 3 16 17 18 24 1000 1e-3 0.5 nan inf -inf 1e400 1e30 99999999999999999999 0x10 \u0661 1_0".split()
WORDS = ["", " ", "x", "a b", "{name}", "{nmae}", "é", "😀", "x\udcff", "x\n", "\x1b[2J", "-", "--", "~nosuch/x", "x" * 300, "a/" * 200]
WORDS += [r"re:(", r"re:.*", "none", "auto", "true", "null", "{a|b", "a,b", "sks", "dog", "<x>", "owner/name", "C:\\x:0.5", ":", "x:nan"]
SETS = [
    "optim.steps=2", 'data.path="a\\0b"', 'run.sample_prompt=["\\ud800"]', 'optim.lr_pattern={"(": 1}', 'method.rank_pattern={"[": 2}',
    "data.sources=[{path: x}, 3]", "data.background=[]", "optim.betas=[1]", "run=3", "a=b", "a.b=c", "=", ".", "x.y=*a", "x.y={{",
]  # fmt: skip
# Commands that would take long or leave the folder, and flags that end the command.
LEFT_OUT = {"demo", "caption"}


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
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds one of everything that a word may name."""
    root = tmp_path_factory.mktemp("flags")
    tiny.folder(root / "imgs", 3)
    (root / "empty").mkdir()
    (root / "file").write_bytes(b"x")
    (root / "one.yaml").write_text("optim: {steps: 1}\n")
    (root / "bad.yaml").write_text("optim: [\n")
    (root / "x.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return root


def draw_words(dice: random.Random, place: Path, base: Path) -> list[str]:
    """A command with some of its flags, most of them well-formed and some with what nobody should type."""
    path, command = dice.choice(list(COMMANDS.items()))
    places = [str(place / name) for name in ("imgs", "empty", "file", "none", "file/x", "one.yaml", "bad.yaml", "x.safetensors")]
    fitting = {"--base": [str(base)], "--data": ["imgs"], "--token": ["sks", "<x>"], "--class": ["dog"], "--prompt": ["a"]}
    options = {p.opts[0]: p for p in command.params if p.opts[0].startswith("--") and p.opts[0] != "--help"}
    words = list(path)
    chosen = {f for f in options if f in fitting and dice.random() < 0.9}
    chosen |= set(dice.sample(list(options), min(len(options), dice.randint(0, 3))))
    for flag in sorted(chosen):
        words.append(flag)
        if options[flag].is_flag:
            continue
        usual = fitting.get(flag, [])
        odd = SETS if flag == "--set" else [*NUMBERS, *WORDS, *places, *str(options[flag].metavar or "").split("|")]
        words.append(dice.choice(usual) if usual and dice.random() < 0.8 else dice.choice(odd))
    words += [dice.choice([*places, *WORDS, "tiny-style"]) for p in command.params if not p.opts[0].startswith("--")]
    few = ["--steps", "1"] if path == ("generate",) else ["--dry-run"] if "--dry-run" in options else []
    return words + few


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


def sweep(count: int, seed: int, place: Path, base: Path) -> None:
    dice, failed = random.Random(seed), dict[str, list[str]]()  # noqa: S311
    for _ in range(count):
        words = draw_words(dice, place, base)
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
    sweep(100, seed, place, base)


def test_some_command_lines(place: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    sweep(25, 1000, place, base)


def test_every_command_is_drawn() -> None:
    assert len(COMMANDS) == 19 and ("data", "check") in COMMANDS and ("ti",) in COMMANDS
