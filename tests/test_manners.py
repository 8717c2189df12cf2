"""The command line's manners: help, examples, completion, colours, and other tools' words."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from finetune import __version__, cli, config
from finetune.cli import complete, flags, help, train, words
from finetune.cli.examples import EXAMPLES
from finetune.config.job import Job
from finetune.config.precedence import assignments, section_model
from finetune.errors import ConfigError

ROOT: Any = typer.main.get_command(cli.app)


def commands(command: Any = ROOT, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command and group, with the words that call it."""
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from commands(one, f"{path} {name}".strip())


COMMANDS = dict(commands())
SETTINGS = {f"{section}.{key}" for section in Job.model_fields for key in section_model(section).model_fields}
FLAGS = {flag for command in COMMANDS.values() for param in command.params for flag in param.opts}


def said(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    assert cli.run(list(line)) == 0, line
    return capsys.readouterr().out


@pytest.mark.parametrize("path", COMMANDS)
def test_help_is_asked_for_in_three_ways(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = said(capsys, *path.split(), "--help")
    assert "Usage: " in first and "-h, --help" in first
    assert said(capsys, *path.split(), "-h") == first == said(capsys, "help", *path.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "version") == said(capsys, "--version") == f"ft {__version__}\n"
    assert json.loads(said(capsys, "version", "--json"))["version"] == __version__


def test_no_command_prints_the_help_and_an_unknown_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2 and capsys.readouterr().out.startswith("Usage: ")
    assert cli.run(["help", "lroa"]) == 2 and "No such command 'lroa'. Did you mean 'lora'" in capsys.readouterr().err
    assert cli.run(["data", "check", "--fool"]) == 2 and "`ft data check --help`" in capsys.readouterr().err


@pytest.mark.parametrize("path", COMMANDS)
def test_two_examples_that_parse(path: str) -> None:
    command, lines = COMMANDS[path], EXAMPLES.get(path, ())
    if command.hidden:
        return
    assert len(lines) == 2
    for line in lines:
        asked = shlex.split(line)
        assert line.startswith(f"ft {path}".strip()) or (path, asked[1]) == ("textual-inversion", "ti")
        one, names = next((COMMANDS[" ".join(asked[1:n])], asked[n:]) for n in (3, 2) if " ".join(asked[1:n]) in COMMANDS)
        one.make_context(one.name, names, parent=typer.Context(ROOT), **ROOT.context_settings)


def test_examples_are_of_commands_that_are_there() -> None:
    assert EXAMPLES.keys() <= COMMANDS.keys()


def test_help_is_as_wide_as_the_terminal_and_in_groups(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    widths = {}
    for columns in (60, 80, 160):
        monkeypatch.setenv("COLUMNS", str(columns))
        widths[columns] = max(len(line) for line in said(capsys, "data", "check", "-h").splitlines())
    assert 50 <= widths[60] <= 60 < widths[80] <= 80 < 140 < widths[160] <= 160
    text = said(capsys, "lora", "-h")
    assert [line for line in text.splitlines() if line and not line.startswith(" ")][1:] == [
        "Arguments:", "Pictures:", "Base:", "What trains:", "How it learns:", "The run and what it leaves:", "Options:", "Examples:",
    ]  # fmt: skip
    assert set(flags.PANELS.values()) >= {p.rich_help_panel for p in COMMANDS["dreambooth"].params if p.rich_help_panel}


@pytest.mark.parametrize("path", COMMANDS)
def test_at_most_40_flags_are_listed_and_values_have_names(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, *path.split(), "-h")
    assert len([p for p in COMMANDS[path].params if p.opts[0].startswith("-") and not p.hidden]) <= 40
    assert not re.search("<(int|float|str|list|path)", text, re.I)
    assert "learning-rate" not in text and "--allow-pickle" not in text


def test_what_is_not_listed_works(imgs: Path, base: Path) -> None:
    line = ["--data", str(imgs), "--base", str(base), "--allow-pickle", "--processes", "1", "--checkpoint-every", "7", "--dry-run"]
    assert cli.run(["lora", *line]) == 0


# Other tools' words


def test_every_word_leads_to_a_setting_or_flag_that_is_there() -> None:
    assert words.SETTINGS.keys() <= SETTINGS
    assert words.DRAWING.keys() <= {flag for p in COMMANDS["generate"].params for flag in p.opts}
    for told, (ours, _) in words.ANSWERS.items():
        flag, _, value = ours.partition(" ")
        assert flag in FLAGS, told
        if flag == "--set":
            own = assignments(shlex.split(value))
            config.parse(config.precedence.merge_settings({} if "sources" in own.get("data", {}) else {"data": {"path": "x"}}, own))


def test_a_word_has_one_meaning() -> None:
    settings = [w for ws in words.SETTINGS.values() for w in ws.split()]
    drawing = [w for ws in words.DRAWING.values() for w in ws.split()]
    answered = [w for ws in (*words.ANSWERS, *words.NEEDLESS) for w in ws.split()]
    for some in (settings + answered, drawing + answered):
        assert len(some) == len(set(some))
        assert all(w == words.bare_flag(w) for w in some)


def test_exact_synonyms_do_the_same(imgs: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(train, "_plan", lambda job, json_: jobs.append(job))
    ours = ["--data", str(imgs), "--base", str(base), "--lr", "3e-4", "--batch", "2", "--accumulate", "3", "--steps", "9", "--rank", "5"]
    ours += ["--set", "data.flip=true", "--set", "optim.weight_decay=0.5", "--set", 'data.prefix="a: b"', "--trigger", "--odd"]
    theirs = ["--train_data_dir", str(imgs), f"--pretrained_model_name_or_path={base}", "--learning_rate", "3e-4", "--train-batch-size=2"]
    theirs += ["--gradient_accumulation_steps", "3", "--max_train_steps", "9", "--network_dim", "5", "--flip", "--adam_weight_decay", "0.5"]
    theirs += ["--caption_prefix", "a: b", "--trigger", "--odd"]
    assert cli.run(["lora", *ours, "--dry-run"]) == cli.run(["lora", *theirs, "--dry-run"]) == 0
    assert jobs[0] == jobs[1] and (jobs[0].data.flip, jobs[0].data.prefix, jobs[0].optim.batch) == (True, "a: b", 2)


def test_every_synonym_of_a_setting_is_understood() -> None:
    """On each command: what it means is a flag of that command, or goes by --set."""
    for path, table in help.TABLES.items():
        own = {flag for p in COMMANDS[path].params for flag in p.opts}
        for word, meant in words.words_of_settings(table).items():
            made = words.translated([f"--{word}", "1"], own, words.words_of_settings(table))
            assert made[0] in own, (path, word)
            if f"--{word}" not in own and not meant.startswith("--"):
                assert made[0] == "--set" and made[1].startswith(f"{meant}="), (path, word)


def test_words_of_drawing(capsys: pytest.CaptureFixture[str]) -> None:
    own = {flag for p in COMMANDS["generate"].params for flag in p.opts}
    line = ["--num_inference_steps", "3", "--lora=x", "--prompt", "a", "--", "--sampler"]
    assert words.translated(line, own, words.words_of_drawing()) == ["--steps", "3", "--adapter=x", "--prompt", "a", "--", "--sampler"]
    assert cli.run(["generate", "--prompt", "x", "--lora_scale", "0.5"]) == 2
    assert "--lora_scale: here it is --adapter FILE:0.8" in capsys.readouterr().err


def test_all_that_is_not_understood_is_answered_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["lora", "--data", "x", "--epochs", "3", "--snr_gamma=5", "--xformers", "--resume_from_checkpoint", "latest"]) == 2
    err = capsys.readouterr().err
    for told in ("--epochs: here it is --steps N", "--snr_gamma: here it is --weighting min-snr", "--xformers: leave it out",
                 "--resume_from_checkpoint: here it is --out FOLDER"):  # fmt: skip
        assert told in err
    assert err.count("error: ") == 1 and "`ft lora --help`" in err
    assert cli.run(["lora", "--data", "x", "--epochs", "3", "--fool"]) == 2 and "--fool: no such flag" in capsys.readouterr().err


# Completion


def completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str) -> list[str]:
    """What bash offers for the last word of a line, which may be empty."""
    monkeypatch.setenv("_FT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    with pytest.raises(SystemExit):
        cli.app(args=[], prog_name="ft")
    return capsys.readouterr().out.split()


def test_values_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    for name in ("runs/one/one.safetensors", "runs/one/run.yaml", "runs/one/notes.txt", "mine.yaml", ".hidden.yaml"):
        (tmp_path / name).write_text("")

    def offers(line: str) -> list[str]:
        return completed(monkeypatch, capsys, line)

    assert offers("ft lora --base ti") == ["tiny", "tiny-inpainting"] and {"tiny", "sd15", "sdxl"} < {*offers("ft generate --base ")}
    assert offers("ft lora --optimizer ada") == ["adamw", "adamw8bit", "adafactor"]
    assert offers("ft dreambooth --adapter lo") == ["lora", "loha", "lokr"]
    assert offers("ft lora --recipe tiny-s") == ["tiny-style"] and offers("ft lora --recipe mi") == ["mine.yaml"]
    assert offers("ft generate --adapter runs/") == ["runs/one"] and offers("ft clean runs/o") == ["runs/one"]
    assert offers("ft generate --adapter ru") == [], "the shell goes on, and puts no space behind a folder"
    assert offers("ft adapter inspect runs/one/") == ["runs/one/one.safetensors"]
    assert offers("ft lora --schedule wsd") == ["wsd"] and "--lr" in offers("ft lora --l")
    assert not [o for o in offers("ft lora --learning") if o.startswith("--learning")]


def test_completion_loads_no_torch() -> None:
    program = """
import sys
from finetune import cli
try:
    cli.app(args=[], prog_name="ft")
finally:
    sys.exit(9 if "torch" in sys.modules or "diffusers" in sys.modules else 0)
"""
    line = {"_FT_COMPLETE": "complete_bash", "COMP_WORDS": "ft lora --base t", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **line}, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0]) == (0, "tiny")


def test_what_cannot_be_listed_offers_nothing() -> None:
    assert complete.adapters("no/such/folder/x") == [] and complete.known_recipes("~nosuch/x") == []


# Colours


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ASKED = [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)]


@pytest.mark.parametrize(("variables", "red"), ASKED)
def test_errors_have_colour_on_a_terminal_alone(variables: dict[str, str], red: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for stream, painted in ((Terminal(), red), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert cli.report_error(ConfigError("x\x1b[2J", "y")) == 2
        text = stream.getvalue()
        assert text == ("\033[1;31merror:\033[0m x?[2J\n\033[36mhint:\033[0m y\n" if painted else "error: x?[2J\nhint: y\n")
