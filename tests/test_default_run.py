"""The run that nobody set up: what is held out and drawn, what it says at its end, and when it is finished."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from parts import Train
from PIL import Image

from finetune import cli, config, files
from finetune.bases import TINY
from finetune.data.sample import Listing, Pictures
from finetune.errors import ConfigError
from finetune.preparation import automatic
from finetune.results import checkpoint, finished, verdict
from finetune.results.summary import Measure, Summary
from finetune.sampling import draw
from finetune.training import plan
from finetune.training.run import train as run_train


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("twenty") / "imgs", 20)


@pytest.fixture
def ft(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`ft("lora", pictures)` in an own folder; returns what stderr says."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, data: Path, *more: str, code: int = 0) -> str:
        words = [command, "--data", str(data), "--base", str(base), "--steps", "2", "--batch", "2", "--out", "run", *more]
        assert cli.run(words) == code
        return capsys.readouterr().err

    return run


def record(out: Path = Path("run")) -> dict[str, Any]:
    return config.read_yaml(out / "run.yaml")


def summary(out: Path = Path("run")) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return found


def test_twenty_pictures_are_measured_and_shown(ft: Callable[..., str], twenty: Path) -> None:
    said = ft("lora", twenty, "--trigger", "tok", "--lr", "1e-6")
    assert "pictures: 18 to train on, 2 held out" in said and "draws before and after: tok" in said
    assert record()["data"]["holdout"] == "0.1" and record()["run"]["sample_prompt"][0] == "tok"
    assert summary()["held_out_change"]["pictures"] == 2 and summary()["verdict"] == "no difference"
    assert "not told apart from the base: on 2 pictures that training never saw" in said
    assert "2 pictures can seldom tell; more would: ft lora --recipe run/run.yaml --holdout 0.25 --out run-measured" in said
    with Image.open(summary()["sheet"]) as sheet:
        assert sheet.width > 2 * 128, "the base's picture beside the result's"
    again = ft("lora", twenty, "--trigger", "tok", "--lr", "1e-6")
    assert "already finished" in again and "not told apart" in again and "draw: ft generate" in again


def test_what_the_verdict_says_to_type_can_be_typed(ft: Callable[..., str], imgs: Path, base: Path, capsys: Any) -> None:
    said = ft("lora", imgs)
    assert record()["data"]["holdout"] is None and "none of 7 pictures was held out" in said
    lines = dict(line.split(": ", 1) for line in said.splitlines() if line.startswith(("measure: ", "draw: ", "continue: ")))
    assert f"--base {base}" in lines["draw"]
    for name, then in (("draw", "wrote"), ("continue", "resuming from step 2"), ("measure", "5 to train on, 2 held out")):
        words = shlex.split(lines[name])[1:] + (["--steps", "1", "--out", "drawn"] if name == "draw" else [])
        assert cli.run(words) == 0, lines[name]
        heard = capsys.readouterr()
        assert then in heard.err + heard.out, name
    assert summary()["steps"] == 4 and summary(Path("run-measured"))["held_out"] == 2


def test_nothing_is_chosen_for_a_recipe_or_against_a_flag(ft: Callable[..., str], twenty: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optim:\n  lr: 0.001\n", encoding="utf-8")
    ft("lora", twenty, "--recipe", "mine.yaml", "--out", "silent")
    assert (record(Path("silent"))["data"]["holdout"], record(Path("silent"))["run"]["sample_prompt"]) == (None, [])
    ft("lora", twenty, "--no-holdout", "--no-samples", "--out", "off")
    assert (record(Path("off"))["data"]["holdout"], record(Path("off"))["run"]["sample_prompt"]) == (None, [])
    assert "--holdout and --no-holdout: give one of them" in ft("lora", twenty, "--holdout", "0.2", "--no-holdout", code=2)
    (tmp_path / "mine.yaml").write_text("data:\n  holdout: auto\nrun:\n  sample_prompt: auto\n", encoding="utf-8")
    ft("lora", twenty, "--recipe", "mine.yaml", "--out", "asked")
    assert record(Path("asked"))["data"]["holdout"] == "0.1" and record(Path("asked"))["run"]["sample_prompt"]


@pytest.mark.parametrize("words", ["textual-inversion --token <x>", "dreambooth --token qz --class disc --prior-weight 0 --adapter lora"])
def test_subjects_are_shown_and_measured_only_when_asked(ft: Callable[..., str], twenty: Path, words: str) -> None:
    command, *more = words.split()
    ft(command, twenty, *more)
    assert record()["data"]["holdout"] is None and Path(summary()["sheet"]).exists()
    assert record()["run"]["sample_prompt"][0] == ("<x>" if command == "textual-inversion" else "qz disc")


def test_yesterdays_run_goes_on(ft: Callable[..., str], twenty: Path, base: Path) -> None:
    """It held nothing out and drew nothing, and knew fewer settings."""
    ft("lora", twenty, "--no-holdout", "--no-samples")
    state = Path("run/checkpoints/step-00000002/state.json")
    facts = json.loads(state.read_text(encoding="utf-8"))
    del facts["identity"]["data.bucket_merge"], facts["identity"]["data.enlarge"], facts["change"]
    state.write_text(json.dumps(facts), encoding="utf-8")
    manifest = json.loads((state.parent / "manifest.json").read_text(encoding="utf-8"))
    manifest["state.json"] = {"size": state.stat().st_size, "sha256": files.sha256(state)}
    (state.parent / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    Path("run/summary.json").unlink()
    assert "resuming from step 2" in ft("lora", twenty, "--steps", "3")
    assert summary()["held_out"] == 0
    assert "data.enlarge (was True, now False)" in ft("lora", twenty, "--steps", "4", "--set", "data.enlarge=false", code=2)


CHANGES = [
    (Measure(0.09, 0.1, -0.01, -0.02, -0.001, 9), "learned"),
    (Measure(0.09, 0.1, -0.01, -0.02, 0.001, 9), "no difference"),
    (Measure(0.11, 0.1, 0.01, 0.002, 0.02, 9), "worse"),
    (Measure(0.09, 0.1, -0.01, None, None, 1), "no difference"),
    (Measure(0.1, 0.1, -4e-9, -5e-9, -2e-9, 100), "no difference"),  # a rate of 1e-8, 2 steps
    (Measure(0.1, 0.1, 9e-5, 8e-5, 2e-4, 100), "no difference"),
    (None, "not measured"),
]


@pytest.mark.parametrize(("measure", "word"), CHANGES)
def test_the_verdict_is_that_of_the_interval(measure: Measure | None, word: str) -> None:
    assert verdict.verdict(measure) == word


def test_a_better_step_than_the_last_is_named(settings: Any) -> None:
    said = {
        "held_out_change": {"mean": 0.01, "low": 0.002, "high": 0.02, "pictures": 9}, "verdict": "worse",
        "base_held_out_loss": 0.1, "held_out_loss": 0.11, "best_step": 200,
        "best_held_out_loss": 0.09, "best": "run/x-best.safetensors", "steps": 300, "sheet": None, "files": ["adapter", "best"],
        "adapter": "run/x.safetensors", "prompt": "a fox's tail", "processes": 2, "pictures": 81, "distinct_pictures": 81, "out": "run",
        "written_as": {},
    }  # fmt: skip
    lines = list(verdict.lines(config.parse(settings()), Summary.of(said)))
    assert lines[0] == (
        "worse than the base: on 9 pictures that training never saw, the loss is 0.1100 where the base's is 0.1000, +10.0 % "
        "(95 % between +2.0 and +20.0 %)"
    )
    assert lines[1] == "best: step 200, with a loss of 0.0900: run/x-best.safetensors"
    assert lines[3].startswith("continue: torchrun --nproc-per-node 2 -m finetune lora --recipe ")
    assert shlex.split(lines[2])[-4:] == ["--adapter", "run/x.safetensors", "--prompt", "a fox's tail"]


def sides(count: int) -> Pictures:
    return Pictures(Listing(), [tiny.sample(f"{i}", f"{i:04d}", (f"caption {i % 5}",)) for i in range(count)], [])


def test_as_many_pictures_as_a_tenth_of_the_work_holds(settings: Any) -> None:
    def prompts(steps: int, batch: int, **data: Any) -> tuple[str, ...]:
        job = config.parse(settings(optim={"steps": steps, "batch": batch}, run={"sample_prompt": "auto"}, data=data))
        found = automatic.resolved(job, sides(10), calls=60)
        assert len(found.run.sample_prompt) == 1 or automatic.share(found, len(found.run.sample_prompt), 60) <= automatic.SHARE
        return found.run.sample_prompt

    assert [len(prompts(steps, 4)) for steps in (10, 200, 500, 5000)] == [1, 2, 3, 4]
    assert prompts(500, 4, trigger="tok") == ("tok", "caption 0", "caption 1")
    job = config.parse(settings(run={"sample_prompt": "auto"}))
    assert automatic.resolved(job, sides(10), calls=0).run.sample_prompt == (), "where none can be drawn"


def test_the_plan_says_what_pictures_cost(settings: Any) -> None:
    text = plan.plan(config.parse(settings(run={"sample_prompt": "auto"}))).text
    assert "samples: one prompt, drawn before and after: 333 % of the work of training, more than 10 % (--no-samples)" in text
    assert "samples: none" in plan.plan(config.parse(settings())).text


def test_a_base_that_cannot_draw_a_size_trains_at_it(train: Train) -> None:
    assert train(run={"sample_prompt": "auto"}, data={"resolution": 18}, optim={"steps": 1})["sheet"] is None
    with pytest.raises(ConfigError, match="--resolution 18"):
        train(run={"sample_prompt": ["tok"]}, data={"resolution": 18}, optim={"steps": 1})


def test_no_memory_for_a_picture_ends_no_run(train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    drawn, whole = [], draw.draw

    def first_fails(*args: Any, **more: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*args, **more)

    monkeypatch.setattr(draw, "draw", first_fails)
    assert Path(train(run={"sample_prompt": ["tok"]}, optim={"steps": 2})["sheet"]).exists()
    assert "note: no samples at step 0: there is no memory" in capsys.readouterr().err


FULL = {"method": {"kind": "full"}, "optim": {"steps": 2, "lr": 1e-5}}


def test_all_weights_drop_their_checkpoints_when_finished(train: Train, settings: Any, tmp_path: Path, capsys: Any) -> None:
    done, out = train(**FULL, data={"holdout": "2.e-1"}), tmp_path / "out"
    assert not (out / "checkpoints").exists() and Path(done["best"]).exists()
    assert "its checkpoints, which are large, were removed" in capsys.readouterr().err
    assert train(**FULL, data={"holdout": "2.e-1"}) == done and "already finished" in capsys.readouterr().err
    kept = config.parse(settings(**FULL, data={"holdout": "2.e-1"}))
    for section, change, why in (
        ("optim", {"steps": 4}, "a finished run of 2 steps without checkpoints"),
        ("optim", {"steps": 1}, "--steps 1: .* has 2 steps already"),
        ("optim", {"lr": 2e-5}, r"other settings: optim.lr \(was 1e-05, now 2e-05\)"),
        ("run", {"save_dtype": "fp16"}, "which can neither go on nor be written anew"),
        ("data", {"holdout": None}, "pictures and captions"),
    ):
        job = kept.model_copy(update={section: getattr(kept, section).model_copy(update=change)})
        with pytest.raises(ConfigError, match=why):
            run_train(job)
    assert Path(done["model"]).exists() and run_train(kept, fresh=True)["steps"] == 2


def test_kept_checkpoints_continue_all_weights(train: Train, tmp_path: Path) -> None:
    train(**FULL, run={"keep_finished": True})
    assert checkpoint.steps(tmp_path / "out" / "checkpoints") == [2]
    assert train(method={"kind": "full"}, optim={"steps": 3, "lr": 1e-5})["steps"] == 3
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_changed_file_is_written_again_from_the_checkpoint(train: Train, tmp_path: Path) -> None:
    path = Path(train()["adapter"])
    right = path.read_bytes()
    assert checkpoint.steps(tmp_path / "out" / "checkpoints") == [6]
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    train()
    assert path.read_bytes() == right


def test_a_copied_run_is_judged_by_its_own_files(train: Train, settings: Any, tmp_path: Path) -> None:
    done = train(**FULL)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    moved = config.parse(settings(**FULL, run={"out": str(tmp_path / "moved")}))
    said = run_train(moved)
    assert said["model"] == str(tmp_path / "moved" / "model") and said["steps"] == done["steps"], "whole, wherever it lies"
    weights = next((tmp_path / "moved" / "model" / "unet").glob("*.safetensors"))
    shutil.copytree(tmp_path / "moved", tmp_path / "out")
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ConfigError, match="can neither go on nor be written anew"):
        run_train(moved)


def test_a_run_stopped_while_it_removed_its_checkpoints_removes_them(train: Train, tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "remove", lambda root: None)
        train(**FULL)
    assert checkpoint.steps(tmp_path / "out" / "checkpoints") == [2]
    assert finished.summary(config.parse(config.read_yaml(tmp_path / "out" / "run.yaml"))) is None, "there is something left to do"
    train(**FULL, run={"sample_prompt": ["tok"]})  # other prompts, which it cannot draw any more, are no reason to refuse
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_auto_is_taken_from_a_run_that_can_go_on_alone(ft: Callable[..., str], twenty: Path, imgs: Path) -> None:
    ft("lora", imgs, "--no-samples")
    assert "already finished" in ft("lora", imgs) and record()["run"]["sample_prompt"] == []
    assert "draws before and after" in ft("lora", imgs, "--sample-prompt", "auto", "--steps", "3"), "asked for in so many words"
    shutil.rmtree("run/checkpoints")
    Path("run/summary.json").unlink()
    assert "18 to train on, 2 held out" in ft("lora", twenty), "nothing is left that could go on"


def test_a_copy_of_the_embedded_base_is_trained_at_its_rates(tmp_path: Path) -> None:
    how = tmp_path / "mine" / "unet" / "config.json"
    how.parent.mkdir(parents=True)
    how.write_bytes((TINY / "unet" / "config.json").read_bytes())

    def rate(base: Path | str) -> float:
        return config.parse({"model": {"base": str(base)}, "data": {"path": "."}}).optim.lr

    assert rate("tiny") == rate(tmp_path / "mine") > rate("sd15")
    how.write_text(how.read_text().replace('"layers_per_block": 1', '"layers_per_block": 2'))
    assert rate(tmp_path / "mine") == rate("sd15"), "another network"
