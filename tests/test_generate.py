"""`ft generate` as a person types it: what it writes where, and what it takes."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune import cli
from finetune.sampling import names

Drawn = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def draw(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """`ft generate` with few steps in an empty folder: exit code, what --json answers, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object, base: Path = base) -> tuple[int, dict[str, Any], str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run(["generate", *map(str, words), "--base", str(base), "--steps", "1", "--json"])
        return code, json.loads(out.getvalue()), err.getvalue()

    return run


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
