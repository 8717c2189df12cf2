"""Words and pictures from outside, at the command line: nothing is lost, misread or waited for in silence."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from finetune import cli, config
from finetune.cli.flags import LORA
from finetune.errors import ConfigError

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def ft(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command's exit code, and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str]:
        code = cli.run([str(w) for w in words])
        return code, capsys.readouterr().err

    return run


BLANK = {
    ("data", "caption", ""): "--caption: is blank; leave it out",
    ("data", "trigger", " \u200b"): "--trigger: is blank; leave it out",
    ("data", "trigger", "a\0b"): "--trigger: holds a null",
    ("data", "caption", "a {nmae} in {folder}"): "--caption: {nmae} is no placeholder; {name} and {folder} are",
    ("data", "prefix", "{name},"): "data.prefix: {name} is taken as it stands here; placeholders are for data.caption",
}


@pytest.mark.parametrize(("section", "name", "value"), BLANK)
def test_words_that_say_nothing_are_refused(section: str, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(BLANK[section, name, value])):
        config.parse({section: {"path": "x", name: value}}, {v: k for k, v in LORA.items()})
    config.parse({"data": {"path": "x", "caption": "a {name} {red|blue}", "suffix": ", {a|b}", "wildcards": True}})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("words", ["lora --data {imgs} --recipe {pipe}", "generate --prompt x --adapter {pipe}", "adapter inspect {pipe}"])
def test_a_pipe_in_the_place_of_a_file_is_refused(words: str, ft: Run, imgs: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code, err = ft(*words.format(imgs=imgs, pipe=tmp_path / "pipe").split())
    assert code in (2, 3) and "it is a named pipe and no file" in err


def test_what_a_prompt_will_not_do_is_said(ft: Run, imgs: Path, base: Path, tmp_path: Path) -> None:
    ft("lora", "--data", imgs, "--base", base, "--steps", 1, "--trigger", "ohwx dog", "--out", tmp_path / "out")
    prompts = ["ohwx dog", "a (red:1.3) dog", "ohwx dog " + "very " * 90 + "long"]
    words = [w for p in prompts for w in ("--prompt", p)]
    code, err = ft("generate", "--adapter", tmp_path / "out" / "lora.safetensors", "--steps", 1, *words)
    assert code == 0
    notes = [text for text in err.splitlines() if text.startswith("note: ")]
    notes = [text for text in notes if "of 13 tokens" not in text]  # the tiny base reads 10
    assert len(notes) == 3 and "tokens is cut to" in notes[0] and "without 'ohwx dog'" in notes[1] and "a (red:1.3) dog" in notes[1]
    assert "(word:1.3)" in notes[2]


def test_an_output_folder_among_the_pictures_can_be_used_again_and_afresh(ft: Run, base: Path, tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "own", 3)
    words = ["lora", "--data", root, "--out", root, "--base", base, "--sample-prompt", "x", "--batch", 1]
    for more in (["--steps", 1], ["--steps", 2], ["--steps", 2, "--fresh"], ["--steps", 2]):
        code, err = ft(*words, *more)
        assert code == 0 and "pictures: 3 to train on" in err
    assert "already finished" in err
