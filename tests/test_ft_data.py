"""`ft data preview`, `cache` and `caption`, as a person calls them."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bad_pictures
import numpy as np
import pytest
import tiny
import torch
from parts import readied
from PIL import Image
from test_batches import halved

from finetune import cli
from finetune.data import captioner
from finetune.sampling import draw

pytestmark = pytest.mark.usefixtures("own_cache")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.run(["data", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_preview_shows_the_pixels_that_training_sees(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found in the sheet, enlarged by whole numbers: the very pixels that the autoencoder gets."""
    from finetune import config
    from finetune.data.crop import Augment
    from finetune.data.encoded import Pixels

    root, out = tiny.folder(tmp_path / "imgs", 1), tmp_path / "sheet.png"
    Image.open(root / "00.png").resize((32, 20)).save(root / "00.png")
    code, printed, _ = run(capsys, "preview", "--data", str(root), "--base", str(base), "--flip", "--out", str(out))
    assert code == 0 and printed.strip() == str(out)
    runner = readied(
        config.parse({"model": {"base": str(base)}, "data": {"path": str(root), "flip": True}, "run": {"out": str(tmp_path / "o")}})
    )
    sample = runner.data.pictures.train[0]
    assert sample.size.width > sample.size.height
    sheet = np.asarray(Image.open(out).convert("RGB"))
    for variant, left in ((0, 8), (1, 192)):
        seen = Pixels(augment=Augment(flip=True)).prepared(sample, variant).image
        scale = 168 / max(seen.size)
        shown = seen.resize((round(seen.width * scale), round(seen.height * scale)), Image.Resampling.NEAREST)
        top = 4 + (176 - shown.height) // 2
        assert np.array_equal(sheet[top : top + shown.height, left : left + shown.width], np.asarray(shown))


def test_the_preview_darkens_what_a_mask_leaves_out(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = halved(tmp_path / "imgs", 255)
    sheets = []
    for mask in ("none", "file"):
        assert (
            run(capsys, "preview", "--data", str(root), "--base", str(base), "--mask", mask, "--out", str(tmp_path / f"{mask}.png"))[0] == 0
        )
        sheets.append(np.asarray(Image.open(tmp_path / f"{mask}.png").convert("L"), dtype=int)[8:170, 8:170])
    assert np.abs(sheets[0][:, :70] - sheets[1][:, :70]).mean() < 1 and (sheets[0][:, 110:] - sheets[1][:, 110:]).mean() > 150


def test_a_cache_built_ahead_is_what_a_run_uses(
    settings: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune import config
    from finetune.preparation import encoding
    from finetune.training.run import train

    job = config.parse(settings(data={"flip": True, "holdout": "0.3"}))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(config.dump(job))
    code, printed, _ = run(capsys, "cache", "--recipe", str(recipe), "--json")
    made = json.loads(printed)
    assert code == 0 and 7 < made["pictures"] <= 14 and made["captions"] > 1
    monkeypatch.setattr(encoding, "_encode", lambda family, jobs, *a: [] if not jobs else pytest.fail("encoded again"))
    monkeypatch.setattr("finetune.families.family.Family.texts", lambda *a: pytest.fail("encoded again"))
    train(job)
    assert json.loads(run(capsys, "cache", "--prune", "--json")[1]).items() >= {"rows": 0, "bytes": 0, "runs": 2}.items(), (
        "the run, and what was built ahead today"
    )
    (tmp_path / "out" / "run.yaml").unlink()
    for note in (tmp_path / "cache" / "runs").iterdir():
        import os

        os.utime(note, (0, 0))
    assert json.loads(run(capsys, "cache", "--prune", "--json")[1])["rows"] == made["pictures"] + made["captions"]


def test_a_cache_built_ahead_is_for_the_batch_of_the_processes_that_run(
    settings: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune import config
    from finetune.training import dataset, device

    job = config.parse(settings(optim={"batch": 2, "accumulate": 3}))
    real = device.accelerator_for(job)
    two = SimpleNamespace(device=real.device, process_index=0, num_processes=2, wait_for_everyone=real.wait_for_everyone)
    monkeypatch.setattr(device, "accelerator_for", lambda job: two)
    batches = []

    def encode(work: Any, pictures: Any, crew: Any) -> tuple[None, dict[str, Any]]:
        batches.append(work.batch)
        return None, {}

    monkeypatch.setattr(dataset, "encode", encode)
    dataset.encode_ahead(job, lambda name, total: nullcontext(lambda: None), lambda text: None)
    assert job.run.processes is None and batches == [12]


# Captions by a model


def blip(folder: Path) -> Path:
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "red", "disc", "on", "white"]
    (folder / "v.txt").parent.mkdir(parents=True, exist_ok=True)
    (folder / "v.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(vocab={w: i for i, w in enumerate(words)})
    text = {
        "hidden_size": 16, "encoder_hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "vocab_size": len(words), "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "is_decoder": True,
    }  # fmt: skip
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 16,
        "patch_size": 8,
    }
    torch.manual_seed(3)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    return folder


def test_a_captioner_writes_what_is_missing_and_keeps_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, root = blip(tmp_path / "blip"), tiny.folder(tmp_path / "imgs", 4)
    (root / "00.txt").write_text("edited by hand")
    (root / "01.txt").write_text("")  # empty on purpose
    for n in (2, 3):
        (root / f"0{n}.txt").unlink()
    words = ["caption", "--data", str(root), "--model", str(model), "--prefix", "tok, ", "--max-tokens", "5"]
    code, printed, _ = run(capsys, *words, "--batch", "2")
    assert code == 0 and printed.strip() == "2 captions written, 2 kept"
    assert [(root / f"0{n}.txt").read_text() for n in (0, 1)] == ["edited by hand", ""]
    made = [(root / f"0{n}.txt").read_text() for n in (2, 3)]
    assert all(text.startswith("tok, ") and len(text.split()) > 1 for text in made)
    assert run(capsys, *words)[1].strip() == "0 captions written, 4 kept"
    assert run(capsys, *words, "--overwrite")[1].strip() == "4 captions written, 0 kept"
    assert (root / "00.txt").read_text().startswith("tok, ") and [(root / f"0{n}.txt").read_text() for n in (2, 3)] == made


def test_a_captioner_goes_on_where_it_stopped_and_respects_an_edit(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 4)
    for path in root.glob("*.txt"):
        path.unlink()
    todo, kept = captioner.uncaptioned(root, overwrite=False)
    assert (len(todo), kept) == (4, 0)

    def slow(images: list[Image.Image]) -> list[str]:
        if (root / "01.txt").exists():
            raise KeyboardInterrupt
        if (root / "00.txt").exists():
            (root / "01.txt").write_text("written by hand meanwhile")
        return ["by the model"] * len(images)

    with pytest.raises(KeyboardInterrupt):
        captioner.caption_folder(root, todo, slow, 1, "", False, lambda: None)  # type: ignore[arg-type]
    assert {p.name: p.read_text().strip() for p in root.glob("*.txt")} == {"00.txt": "by the model", "01.txt": "written by hand meanwhile"}
    assert [i.name for i in captioner.uncaptioned(root, overwrite=False)[0]] == ["02.png", "03.png"]


REFUSED = [
    ("caption --data {tmp}/none --model x", 3, "none: no such folder"),
    ("caption --data {tmp}/listed --model x", 3, "its captions stand in metadata.jsonl"),
    ("caption --data {tmp}/silent --model {tmp}/no-model", 4, "--model {tmp}/no-model"),
    ("check --data {imgs} --base {base} --sheet x.png", 2, "--sheet: needs --vae"),
    ("check --data {tmp}/none --base {base}", 3, "none: no such folder"),
    ("check --data {imgs} --base {base} --resolution 17", 2, "--resolution 17: must be a multiple of 2"),
    ("check --base {base}", 2, "--data: missing"),
    ("check --data {imgs} --base {base} --set data.bucket_min=64 --set data.bucket_max=32", 2, "data.bucket_min 64: is larger"),
    ("check --data {imgs} --base {base} --set data.bucket_max=8", 2, "data.bucket_max"),
    ("check --data {imgs} --base {base} --resolution 64 --set data.bucket_max=32", 2, "data.bucket_max 32: leaves out the square of 64"),
    ("check --data {imgs} --base {base} --set data.keep_tags=2", 2, "data.keep_tags: no tags are shuffled"),
    ("preview --data {tmp}/silent --base {base} --out {tmp}/x.png", 3, "00.png: no caption"),
]


@pytest.mark.parametrize(("words", "code", "message"), REFUSED)
def test_refusals(words: str, code: int, message: str, tmp_path: Path, imgs: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.folder(tmp_path / "listed", 1)
    (tmp_path / "listed" / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "x"}')
    tiny.folder(tmp_path / "silent", 1)
    (tmp_path / "silent" / "00.txt").unlink()
    places = {"tmp": tmp_path, "imgs": imgs, "base": base}
    got, printed, said = run(capsys, *words.format(**places).split())
    assert (got, printed) == (code, "") and message.format(**places) in said and "Traceback" not in said


def test_the_bad_folder_is_refused_by_training_with_the_same_words(
    settings: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = bad_pictures.folder(tmp_path / "bad")
    assert cli.run(["lora", "--data", str(bad), "--base", "tiny", "--dry-run"]) == 3
    said = capsys.readouterr().err
    assert all(name in said for name in bad_pictures.BROKEN)


def test_a_sheet_replaces_a_sheet_and_nothing_else(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a picture to train on, nor one that was drawn, nor any other file."""
    tiny.folder(tmp_path / "imgs", 2)
    words = ["preview", str(tmp_path / "imgs"), "--base", str(base), "--out"]
    sheet, drawn, notes = tmp_path / "imgs" / "sheet.png", tmp_path / "000-0.png", tmp_path / "notes.txt"
    draw.save_png(Image.new("RGB", (8, 8)), drawn, {"prompt": "a"})
    notes.write_text("mine")
    for path in (tmp_path / "imgs" / "00.png", drawn, notes):
        before = path.read_bytes()
        code, _, err = run(capsys, *words, str(path))
        assert code == 2 and f"--out {path}: is there already" in err and path.read_bytes() == before
        code, _, err = run(capsys, "check", str(tmp_path / "imgs"), "--vae", str(base), "--sheet", str(path))
        assert code == 2 and f"--sheet {path}: is there already" in err and path.read_bytes() == before
    assert run(capsys, *words, str(sheet))[0] == run(capsys, *words, str(sheet))[0] == 0


def test_a_check_holds_out_what_a_run_would(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = run(capsys, "check", "--data", str(tiny.folder(tmp_path / "imgs", 24)), "--base", str(base), "--json")
    facts = json.loads(printed)
    assert code in (0, 3) and facts["held_out"] > 0 and facts["held_out"] + facts["to_train_on"] == 24
