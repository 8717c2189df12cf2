"""`ft data check` on a folder with everything wrong: each planted problem is named, and nothing else."""

import json
from pathlib import Path
from typing import Any

import bad_pictures
import numpy as np
import pytest
import tiny
from PIL import Image

from finetune import cli


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return bad_pictures.folder(tmp_path / "bad")


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = cli.run(["data", "check", "--base", "tiny", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def named(report: dict[str, Any], level: str) -> set[tuple[str, str]]:
    return {(name, found["what"]) for found in report[level] for name in found["files"]}


def planted(part: dict[str, tuple[bytes, str]]) -> dict[str, str]:
    return {name: text for name, (_, text) in part.items()}


def test_every_planted_problem_is_named_and_nothing_else(bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bad / "silent.png").write_bytes(bad_pictures.saved(bad_pictures.photo(20), "PNG"))
    (bad / "hollow.png").write_bytes(bad_pictures.saved(bad_pictures.photo(21), "PNG"))
    (bad / "hollow.txt").write_text(" \n")
    (bad / "foreign.png").write_bytes(bad_pictures.saved(bad_pictures.photo(22), "PNG"))
    (bad / "foreign.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "outside.png").write_bytes(bad_pictures.GOOD["plain.png"])
    (bad / "link.png").symlink_to(tmp_path / "outside.png")
    (bad / "drawing.psd").write_bytes(b"8BPS")
    (bad / "alone.txt").write_text("no picture")
    code, report = check(capsys, "--data", str(bad))
    assert code == 3
    own = {"silent.png": "no caption", "hollow.png": "empty caption file", "foreign.txt": "not UTF-8 (byte 3)"}
    errors = named(report, "errors")
    assert {name for name, _ in errors} == own.keys() | bad_pictures.BROKEN.keys()
    assert all(text.startswith((own | planted(bad_pictures.BROKEN))[name]) for name, text in errors)
    unused = {
        "link.png": "not used: a link that leaves the folder",
        "drawing.psd": "not used: .psd is not read; convert it to PNG",
        "alone.txt": "caption file without a picture",
    }
    doubtful = {k: v for k, v in planted(bad_pictures.DOUBTFUL).items() if "enlarged" not in v and "loses" not in v}
    assert named(report, "warnings") == set((unused | doubtful).items())
    assert named(report, "notes") == set(planted(bad_pictures.CONVERTED).items())


def test_sizes_are_told_once_nothing_is_broken(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in bad_pictures.BROKEN:
        (bad / name).unlink()
        (bad / name).with_suffix(".txt").unlink()
    code, report = check(capsys, "--data", str(bad))
    rare = {what for name, what in named(report, "warnings") if "smaller --batch" in what}
    assert code == 0 and named(report, "warnings") - {("long.png", what) for what in rare} == set(planted(bad_pictures.DOUBTFUL).items())
    assert len(rare) == 1 and any(name == "sideways.jpg" and "75% of it is kept" in what for name, what in named(report, "notes"))
    assert report["to_train_on"] == 17 == sum(report["buckets"].values()) and report["buckets"]["128x32"] == 1
    assert check(capsys, "--data", str(bad), "--strict")[0] == 3


def test_a_near_duplicate_of_a_held_out_picture_is_a_leak(bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, held = tmp_path / "train", tmp_path / "held"
    for place, name, data in ((train, "a.png", 0), (train, "b.png", 1), (held, "a.jpg", 0)):
        place.mkdir(exist_ok=True)
        (place / name).write_bytes(bad_pictures.saved(bad_pictures.photo(data), "PNG" if name.endswith("png") else "JPEG"))
        (place / name).with_suffix(".txt").write_text(name)
    code, report = check(capsys, "--data", str(train), "--holdout", str(held))
    assert code == 0
    assert named(report, "warnings") == {(f"{held}/a.jpg", "nearly the same picture as a.png, and one of the two is held out")}


def test_captions_are_counted_as_the_base_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tiny.folder(tmp_path / "imgs", 3)
    (root / "00.txt").write_text("cat " * 40)
    code, report = check(capsys, "--data", str(root), "--trigger", "cat")
    assert code == 0 and ("00.png", "a caption of 40 tokens is cut to 22") in named(report, "warnings")
    assert report["trigger"] == {"word": "cat", "captions": 3} and report["tokens"]["most"] == 40
    assert check(capsys, "--data", str(root))[1]["tokens"]["read"] == 22


def test_the_autoencoders_error_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tiny.folder(tmp_path / "imgs", 2)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "noise.png")
    (root / "noise.txt").write_text("noise")
    sheet = tmp_path / "worst.png"
    code, report = check(capsys, "--data", str(root), "--vae", "tiny", "--sheet", str(sheet))
    worst = report["autoencoder"]["worst"]
    assert code == 0 and sheet.exists() and worst[0]["file"] == "noise.png", "the worst first"
    assert worst[0]["psnr"] < 12 < report["autoencoder"]["mean_psnr"]
    assert ("noise.png", f"the autoencoder of tiny holds it badly: {worst[0]['psnr']:.1f} dB") in named(report, "warnings")


def test_a_check_reads_as_text_too(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "check", "--base", "tiny", "--data", str(bad)]) == 3
    text = capsys.readouterr().out
    assert "errors: 4" in text and "short.jpg: not a readable picture" in text and "two\nlines.png" not in text
    assert "\x1b" not in text
