"""What a run leaves is read back from its folder alone, typed, and by the names of one module."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parts import Train

from finetune import config, files, tensor_files
from finetune.results import checkpoint, metrics, record, summary
from finetune.results.metrics import Row
from finetune.results.summary import Measure, Summary
from finetune.run_folder import RunFolder, average_name, best_name, saved_name, step_of
from finetune.sampling import draw
from finetune.training import average
from finetune.training.rebuilt import write_step

SECTIONS: dict[str, Any] = {
    "data": {"holdout": "0.3"},
    "optim": {"steps": 4, "ema_posthoc": True},
    "run": {
        "name": "x", "sample_prompt": ["red disc", "blue"], "sample_every": 2, "checkpoint_every": 2, "holdout_every": 2, "log_every": 1,
    },
}  # fmt: skip


@pytest.fixture
def run(train: Train, tmp_path: Path) -> RunFolder:
    train(**SECTIONS)
    return RunFolder(tmp_path / "out")


def test_a_run_is_read_back_from_its_folder(run: RunFolder, settings: Callable[..., dict[str, Any]]) -> None:
    job = config.parse(settings(**SECTIONS))
    assert record.settings(run.path).model_dump(exclude={"run"}) == job.model_dump(exclude={"run"})

    rows = metrics.read(run.metrics)
    assert [row.step for row in rows] == [0, 1, 2, 3, 4]
    base, first, last = rows[0], rows[1], rows[-1]
    assert base.loss is None and base.held_out_loss and base.held_out_change is None
    assert first.loss and first.held_out_loss is None and 0 < (first.lr or 0) <= job.optim.lr
    assert last.loss and last.loss_smooth and last.held_out_loss and last.held_out_by_timestep
    assert sum(last.held_out_by_timestep) / len(last.held_out_by_timestep) == pytest.approx(last.held_out_loss, rel=1e-5)

    assert checkpoint.steps(run.checkpoints) == [4, 2]
    assert checkpoint.is_valid(run.checkpoint(4)) and checkpoint.facts(run.checkpoint(4))["step"] == 4
    assert [step_of(path.stem) for path in run.snapshots] == [2, 4]
    assert int(tensor_files.open_sealed(run.best)[1]["step"]) in (2, 4)

    drawn = run.pictures_drawn
    assert [sample.step for sample in drawn] == [0, 0, 2, 2, 4, 4] and len({sample.key for sample in drawn}) == 2
    assert all(sample.path == run.sample(sample.step, sample.key) and draw.open_png(sample.path) for sample in drawn)
    assert {*run.drawn} == {*(sample.path for sample in drawn), run.sheet(2), run.sheet(4)}

    ended = summary.read(run.path)
    said = ended.summary
    assert said.files == ["adapter", "best"] and said.sheet == run.sheet(4) and said.out == run.path
    assert said.written == {"adapter": run.weights("x"), "best": run.weights(best_name("x"))}
    assert said.measure and last.held_out_change is not None and last.held_out_loss == said.measure.loss
    assert said.measure == Measure(
        last.held_out_loss, said.measure.base, last.held_out_change, last.held_out_change_low, last.held_out_change_high, said.held_out
    )
    assert said.measure.base == pytest.approx(base.held_out_loss)
    assert summary.is_whole(ended) and summary.finished(ended, record.settings(run.path))


def test_a_summary_is_the_same_in_the_file_and_for_scripts(train: Train, tmp_path: Path) -> None:
    printed = train(**SECTIONS)
    raw = json.loads(RunFolder(tmp_path / "out").summary.read_text(encoding="utf-8"))
    assert {k: v for k, v in raw.items() if k not in summary.OF_THE_RECORD} == printed == Summary.of(printed).record()
    assert raw.keys() - printed.keys() == set(summary.OF_THE_RECORD)


def test_what_is_written_after_a_run_has_its_names(run: RunFolder) -> None:
    assert write_step(run.path, 2) == {"adapter": run.weights(saved_name("x", 2))}
    assert average.write(run.path, 0.1, None) == {"adapter": run.weights(average_name("x", 0.1))}


def test_every_file_of_a_run_has_a_name_of_its_owner(run: RunFolder) -> None:
    named = {*record.kept_files(run.path), *summary.files_of(run.path).values()}
    for step in checkpoint.steps(run.checkpoints):
        named |= {*run.checkpoint(step).iterdir()}
    assert {path for path in run.path.rglob("*") if path.is_file()} == named


def test_a_summary_of_an_older_version_is_read_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    old = {"files": ["adapter"], "adapter": "/elsewhere/x.safetensors", "out": "/elsewhere", "steps": 3, "written_as": {}}
    files.write_json(run.summary, old | {"identity": {}, "sha256": {}})
    said = summary.read(tmp_path).summary
    assert said.written == {"adapter": run.weights("x")} and said.measure is None and said.processes == 1
    for damage in ({"steps": None}, {"verdict": "fine"}, {"written_as": 3}, {"held_out_change": [1]}, {"identity": 1}):
        files.write_json(run.summary, old | {"identity": {}, "sha256": {}} | damage)
        assert summary.ended(tmp_path) is None, damage


def test_rows_of_one_step_are_one_and_what_is_no_row_is_passed_over(tmp_path: Path) -> None:
    path = RunFolder(tmp_path / "new").metrics
    metrics.append(path, 2, {"loss": 0.5, "lr": 1e-3})
    metrics.append(path, 2, {"held_out_loss": 0.25, "held_out_by_timestep": [0.25, 0.25], "held_out_change": float("nan")})
    metrics.append(path, 1, {"loss": float("inf"), "of_a_later_version": "x"})
    with path.open("a", encoding="utf-8") as file:
        file.write('null\n[]\n{"loss": 1}\n{"step": "x"}\n{"step": 3, "loss": "x"}\n{"step": 1e999}\n{"step": 3, "lo')
    assert metrics.read(path) == [Row(1), Row(2, 0.5, lr=1e-3, held_out_loss=0.25, held_out_by_timestep=(0.25, 0.25))]


def test_removing_takes_files_folders_and_links_but_not_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("link", "kept/file", "kept", "never there"):
        files.remove(tmp_path / name)
        assert not (tmp_path / name).is_symlink() and (name != "link" or (tmp_path / "kept" / "file").exists())
    assert not [*tmp_path.iterdir()]
