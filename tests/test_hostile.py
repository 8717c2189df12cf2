"""What comes from outside stays text: it runs nothing, forges no line, steers no terminal, and opens nothing that it names."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hostile
import pytest

from finetune import cli
from finetune.families import source

_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_FORGED = re.compile(r"^(error: forged|forged|license: forged)", re.M)
MOST = 20_000  # letters that a command says of a file


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands run in an empty folder, in which no payload may make its file, and which reaches no Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "_download", lambda *_: pytest.fail("a payload was asked for on the Hub"))
    yield
    assert not list(tmp_path.rglob(f"*{hostile.CANARY}"))


class Answer(NamedTuple):
    code: int
    said: str  # on both streams
    out: str


Said = Callable[..., Answer]


@pytest.fixture
def ft(capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command, whose output must be plain and its own; returns the exit code and all that it said."""

    def run(*words: object) -> Answer:
        capsys.readouterr()
        code = cli.run(list(map(str, words)))
        out, err = capsys.readouterr()
        for text in (out, err):
            assert not _STEERS.search(text), ascii(_STEERS.search(text))
            assert not _FORGED.search(text), text
            assert len(text) < MOST
        return Answer(code, out + err, out)

    return run


@pytest.fixture(scope="module")
def trained(base: Path, imgs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    words = ["--data", str(imgs), "--base", str(base), "--steps", "2", "--batch", "2", "--rank", "2", "--no-samples"]
    assert cli.run(["lora", *words, "--out", str(out)]) == 0
    return out


def test_adapter_files(trained: Path, base: Path, tmp_path: Path, ft: Said) -> None:
    (tmp_path / "in").mkdir()
    for path in hostile.adapters(trained / "lora.safetensors", tmp_path / "in"):
        assert ft("adapter", "inspect", path).code == 0
        assert json.loads(ft("adapter", "inspect", path, "--json").out)["bytes"] > 0
        code, said, _ = ft("generate", "x", "--adapter", path, "--steps", "1")
        assert code in (2, 3), said
        code, said, _ = ft("adapter", "convert", path, "--to", "diffusers", "--out", tmp_path / "out" / path.name)
        assert code == (0 if path.name.startswith("header") else 3), said


def test_pictures_and_captions(base: Path, tmp_path: Path, ft: Said) -> None:
    folder = hostile.pictures(tmp_path / "imgs")
    assert ft("data", "check", folder, "--base", base).code == 3
    assert json.loads(ft("data", "check", folder, "--base", base, "--json").out)["exit_code"] == 3
    for path in folder.glob("*.txt"):
        if b"\xff" in path.read_bytes():
            path.unlink()
            path.with_suffix(".png").unlink()
    words = ["--data", folder, "--base", base, "--steps", "1", "--resolution", "16", "--no-samples"]
    code, said, _ = ft("lora", *words, "--out", tmp_path / "run")
    assert code == 0, said


def test_recipes(base: Path, tmp_path: Path, ft: Said) -> None:
    for path in hostile.recipes(tmp_path):
        code, said, _ = ft("lora", "--recipe", path, "--out", tmp_path / "run", "--dry-run")
        assert code in (2, 3, 4), said


@pytest.mark.parametrize("number", range(len(hostile.PAYLOADS)))
def test_run_folders(number: int, trained: Path, tmp_path: Path, ft: Said) -> None:
    """Every text of every record of a run is a payload."""
    payload, run = hostile.PAYLOADS[number], shutil.copytree(trained, tmp_path / "run")

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: poisoned(v) for k, v in value.items()} | {payload[:99]: payload}
        return [poisoned(v) for v in value] if isinstance(value, list) else payload if isinstance(value, str) else value

    for name in ("summary.json", "finished.json", "pictures.json"):
        if (run / name).exists():
            (run / name).write_text(json.dumps(poisoned(json.loads((run / name).read_text()))))
    for words in (["generate", "x", "--adapter", run], ["adapter", "inspect", run], ["adapter", "average", run, "--length", "0.1"]):
        assert ft(*words).code in (2, 3)
    assert ft("generate", "x", "--adapter", run / "checkpoints" / "step-2").code in (0, 2, 3)
    ft("clean", run, "--yes")
    (run / "run.yaml").write_text(json.dumps({"model": {"base": payload}, "data": {"path": payload}}))
    assert ft("generate", "x", "--adapter", run / "checkpoints" / "step-2").code in (2, 3)
    ft("clean", tmp_path, "--yes")


@pytest.mark.parametrize("payload", [p for p in hostile.PAYLOADS if len(p) < 100])
def test_cards(payload: str, base: Path, imgs: Path, tmp_path: Path, ft: Said) -> None:
    """What a recipe from elsewhere says goes into the card of the adapter, as text."""
    words = ["--data", imgs, "--base", base, "--steps", "1", "--rank", "2", "--no-samples", "--out", tmp_path / "run"]
    code, said, _ = ft("lora", *words, "--trigger", f"a {payload}")
    if code == 2:  # no word
        return
    assert code == 0, said
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert not _STEERS.search(card) and card.count("\n---") == 1 and len(re.findall("^```", card, re.M)) == 2
    outside = re.sub(r"`[^`\n]*`|^ {4}.*$|^```.*?^```$|\A---.*?\n---", "", card, flags=re.M | re.S)
    assert not re.search(r"<script|(?<!\\)!\[|^forged|^error: forged", outside, re.M)
    (command,) = re.findall(r"^ {4}(ft generate.*)$", card, re.M)
    assert "$(" not in re.sub(r"'[^']*'", "", command) and "`" not in re.sub(r"'[^']*'", "", command)
    assert shlex.split(command)[:2] == ["ft", "generate"] and len(shlex.split(command)) == 6
    compile("".join(re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)), "card", "exec")
