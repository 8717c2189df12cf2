"""`ft generate` as a person types it: what it writes where, and what it takes."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from finetune import cli, config, files, tensor_files
from finetune.adapters import contract
from finetune.adapters.contract import Contract
from finetune.families import source
from finetune.header import header_of
from finetune.results import outcome
from finetune.results.outcome import Outcome
from finetune.sampling import names
from finetune.training.rebuilt import write_step

Drawn = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def draw(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """`ft generate` with few steps in an empty folder: exit code, what --json answers, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object, base: Path | None = base) -> tuple[int, dict[str, Any], str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run(["generate", *map(str, words), *(["--base", str(base)] if base else []), "--steps", "1", "--json"])
        return code, json.loads(out.getvalue()), err.getvalue()

    return run


@pytest.fixture(scope="module")
def runs(base: Path, imgs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two steps, both of them saved: of an adapter, of new tokens, of both, of all weights; one that was broken off."""
    root = tmp_path_factory.mktemp("runs")
    words = [
        "--data",
        str(imgs),
        "--base",
        str(base),
        "--steps",
        "2",
        "--checkpoint-every",
        "1",
        "--batch",
        "2",
        "--set",
        "run.keep_finished=true",
        "--no-samples",
    ]
    more = {
        "adapter": ["lora", "--ema", "0.9"],
        "average": ["lora", "--optimizer", "schedule-free", "--adapter", "dora"],
        "token": ["ti", "--token", "<x>"],
        "both": ["lora", "--new-token", "tok", "--trigger", "tok"],
        "whole": ["dreambooth", "--token", "sks", "--class", "dog", "--prior-weight", "0"],
    }
    for name, own in more.items():
        assert cli.run([*own, *words, "--name", name, "--out", str(root / name)]) == 0
    shutil.copytree(root / "adapter", root / "broken")
    for name in ("summary.json", "adapter.safetensors"):
        (root / "broken" / name).unlink()
    return root


@pytest.mark.parametrize(("name", "adapters", "embeddings", "at"), [
    ("adapter:0.5", {"adapter.safetensors": 0.5}, [], "random"), ("token", {}, ["<x>"], "random"),
    ("both", {"both.safetensors": 1.0}, ["tok"], "random"), ("whole", {}, [], "model"),
    ("adapter/checkpoints/step-1", {"adapter-step-1.safetensors": 1.0}, [], "random"),
    ("whole/checkpoints/step-00000001", {}, [], "model-step-1"),
    ("broken/checkpoints/step-2:2", {"adapter-step-2.safetensors": 2.0}, [], "random"),
])  # fmt: skip
def test_a_run_is_an_adapter(name: str, adapters: Any, embeddings: list[str], at: str, runs: Path, draw: Drawn) -> None:
    code, said, err = draw("x", "--adapter", runs / name, base=None)
    assert code == 0, err
    one = said["pictures"][0]
    assert (one["adapters"], one["embeddings"], one["base"]) == (adapters, embeddings, at)


@pytest.mark.parametrize("name", ["adapter", "average", "token", "whole"])
def test_a_saved_step_is_what_a_run_of_so_many_steps_ends_with(name: str, runs: Path) -> None:
    """The last one the run's own file, average and all; the first one another."""
    from safetensors.torch import load_file

    def tensors(written: Outcome) -> list[Any]:
        path = written.adapter or next(iter(written.embeddings), None)
        if path is None:
            assert written.model
            path = next((written.model / "unet").glob("*.safetensors"))
        found = load_file(path)
        return [found[k] for k in sorted(found)]

    last = outcome.find(runs / name)
    first, second = (Outcome.of(write_step(runs / name, step)) for step in (1, 2))
    assert isinstance(last, Outcome)
    assert all(map(torch.equal, tensors(second), tensors(last))) and not all(map(torch.equal, tensors(first), tensors(last)))
    if first.adapter and last.adapter:
        own, others = (Contract.of(header_of(p).metadata) for p in (last.adapter, first.adapter))
        assert own and others and (others.trained_steps, replace(others, trained_steps=2)) == (1, own)


@pytest.mark.parametrize(("words", "message", "hint"), [
    ("x --adapter {runs}/broken", "this run is not finished; saved steps: 2, 1", "checkpoints/step-2 draws with that step"),
    ("x --adapter {runs}/adapter/checkpoints/step-7", "step-7: is no saved step; saved steps: 2, 1", "step-2 draws"),
    ("x --adapter {runs}/adapter/checkpoints", "holds what the run saved on its way; saved steps: 2, 1", "step-2 draws"),
    ("x --adapter {runs}/empty", "empty: this run is not finished; it has saved no step", "the command that began the run goes on"),
    ("x --adapter {runs}", "holds no adapter, and is no run's folder", "the folder of a run"),
    ("x --adapter {runs}/token:2", "a weight is for an adapter, and this run made none", "leave it out"),
    ("x --adapter {runs}/whole --base tiny", "--base tiny: ", "leave one of them out"),
    ("x --embedding {runs}/adapter", "--embedding {runs}/adapter: this run made none", "--adapter {runs}/adapter"),
    ("x --base {runs}/adapter", "--base {runs}/adapter: this run made no whole model", "--adapter {runs}/adapter"),
])  # fmt: skip
def test_what_a_run_does_not_have_is_said(words: str, message: str, hint: str, runs: Path, draw: Drawn) -> None:
    (runs / "empty").mkdir(exist_ok=True)
    (runs / "empty" / "run.yaml").touch()
    code, said, _ = draw(*words.format(runs=runs).split(), base=None)
    assert code in (2, 3) and message.format(runs=runs) in said["error"]["message"] and hint.format(runs=runs) in said["error"]["hint"]


def test_a_run_that_was_moved_is_found_and_one_whose_file_is_gone_says_so(runs: Path, draw: Drawn, tmp_path: Path) -> None:
    moved = shutil.copytree(runs / "both", tmp_path / "moved" / "here")
    code, said, err = draw("x", "--embedding", moved, "--adapter", moved)
    assert code == 0 and said["pictures"][0]["embeddings"] == ["tok"], err
    (moved / "both.safetensors").unlink()
    code, said, _ = draw("x", "--adapter", moved)
    assert code == 3 and "both.safetensors, which this run ended with, is gone; saved steps: 2, 1" in said["error"]["message"]


def test_the_adapter_commands_take_a_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["inspect"], ["verify", "--base", str(runs / "whole")], ["convert", "--to", "diffusers"]):
        assert cli.run(["adapter", *words, str(runs / "adapter")]) == 0
    assert (runs / "adapter" / "adapter-diffusers.safetensors").exists()
    assert cli.run(["adapter", "inspect", str(runs / "token")]) == 0 and "embedding" in capsys.readouterr().out
    assert cli.run(["adapter", "inspect", str(runs / "whole")]) == 3 and "ft generate --base" in capsys.readouterr().err


def test_the_same_command_twice_keeps_both_results(draw: Drawn, tmp_path: Path) -> None:
    words = ("red", "blue", "--count", 2, "--grid", "--out", "out")
    first = draw(*words)[1]
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "2024-07-holiday.png").write_bytes(b"mine")
    code, second, err = draw(*words)
    assert code == 0 and all(p.read_bytes() == data for p, data in before.items())
    paths = [[Path(p["path"]).as_posix() for p in said["pictures"]] for said in (first, second)]
    assert paths[0] == ["out/000-0.png", "out/000-1.png", "out/001-0.png", "out/001-1.png"]
    assert paths[1] == ["out/002-0.png", "out/002-1.png", "out/003-0.png", "out/003-1.png"]
    assert [Path(said["grid"]).as_posix() for said in (first, second)] == ["out/grid.png", "out/grid-002.png"]
    assert "4 pictures to out: 002-0.png to 003-1.png" in err and "grid-002.png" in err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in before} | {
        "2024-07-holiday.png", "grid-002.png", *(Path(p).name for p in paths[1]),
    }  # fmt: skip
    assert draw(*words)[1]["grid"].endswith("grid-004.png")


def test_two_commands_that_draw_at_once_keep_both_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with names.claimed(tmp_path / "000-7.png") as mine, names.claimed(tmp_path / "000-7.png") as other:
        assert (mine.name, other.name) == ("000-7.png", "001-7.png")
        mine.write_bytes(b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["000-7.png"]
    with names.claimed(tmp_path / "grid.png") as mine, names.claimed(tmp_path / "grid.png") as other:
        assert other.name == "grid-001.png"
    (tmp_path / "grid-0041.png").touch()
    assert names.used(tmp_path) == 42 and names.used(tmp_path / "none") == 0


def test_prompts_are_words_or_flags(draw: Drawn) -> None:
    code, said, _ = draw("a fox", "--prompt", "a cat", "a dog")
    assert code == 0 and [p["prompt"] for p in said["pictures"]] == ["a fox", "a dog", "a cat"] and said["grid"] is None


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (("--width", 32, "--height", 16), (32, 16)),
        (("--resolution", 24, "--height", 16), (24, 16)),
        (("--width", 24), (24, 16)),
    ],
)
def test_width_and_height(words: tuple[object, ...], size: tuple[int, int], draw: Drawn) -> None:
    code, said, err = draw("x", *words)
    assert code == 0, err
    with Image.open(said["pictures"][0]["path"]) as image:
        assert image.size == size


@pytest.mark.parametrize("flag", ["--width", "--height"])
def test_a_side_that_no_pipeline_draws_is_refused_by_its_flag(flag: str, draw: Drawn) -> None:
    code, said, _ = draw("x", flag, 100)
    assert code == 2 and f"{flag} 100: " in said["error"]["message"] and f"{flag} 96 or 104" in said["error"]["hint"]


def test_flux_draws_an_oblong(bases: Callable[[str], Path], draw: Drawn) -> None:
    code, said, err = draw("x", "--width", 32, "--height", 16, base=bases("flux"))
    assert code == 0, err
    with Image.open(said["pictures"][0]["path"]) as image:
        assert image.size == (32, 16)


def test_a_bar_with_the_time_left_on_a_terminal_alone(draw: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "drawing" not in draw("x", "--count", 2)[2]
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, said, err = draw("x", "--count", 2, "--batch", 1)
    assert code == 0 and len(said["pictures"]) == 2 and "drawing" in err and "2/2" in err and "0:00:0" in err


def test_the_bar_moves_with_every_step_and_never_back(base: Path, tmp_path: Path) -> None:
    from finetune.sampling.generate import Request, generate

    told: list[float] = []
    request = Request(["a", "b"], base=str(base), steps=4, count=2, out=tmp_path, batch=3, sampler="pndm")
    generate(request, lambda text: None, lambda name, total: contextlib.nullcontext(told.append))
    assert told == sorted(told) and told[-1] == 4 and {0.75, 1.5, 2.25, 3.0, 3.25, 3.5, 3.75} <= set(told)


@pytest.fixture
def foreign(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run as somebody else's machine made it: nothing here remembers its base."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))

    def opened(*_: object) -> None:
        pytest.fail("a base was opened that the user did not name")

    monkeypatch.setattr(source, "_download", opened)
    monkeypatch.setattr(source, "_single_file", opened)
    return shutil.copytree(runs / "adapter", tmp_path / "adapter")


@pytest.mark.parametrize("what", ["adapter.safetensors", ".", "checkpoints/step-2"])
@pytest.mark.parametrize("named", ["{base}", "owner/name", "model.ckpt", "/dev/zero", "owner/name\nerror: none"])
def test_a_file_from_elsewhere_opens_no_base(what: str, named: str, base: Path, foreign: Path, draw: Drawn) -> None:
    said = config.read_yaml(foreign / "run.yaml")
    said["model"] |= {"base": named.format(base=base), "allow_pickle": True}
    (foreign / "run.yaml").write_text(json.dumps(said))
    renamed(foreign / "adapter.safetensors", base=named.format(base="random"))
    code, _, err = draw("x", "--adapter", foreign / what, base=None)
    assert code == 2 and "as it says itself, which is no base that is known here" in err, err
    assert "--base " in err and "\nerror: none" not in err
    code, _, err = draw("x", "--adapter", foreign / what, base=base)
    assert code == 0, err


def renamed(path: Path, **values: str) -> None:
    """The same adapter, with another contract."""
    said = header_of(path).metadata
    said |= {contract.KEY: json.dumps(json.loads(said[contract.KEY]) | values)}
    files.write_bytes(path, tensor_files.safetensors(load_file(path), said))
