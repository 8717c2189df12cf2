"""From places to samples: which captions, which sides, what is left out, and what is refused by name."""

import json
import os
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_decode import png

from finetune.data import folder, scan
from finetune.data.captions import Wording
from finetune.data.inputs import LOSS_MASK
from finetune.data.sample import Listing, Sample
from finetune.data.scan import Origin
from finetune.errors import ConfigError, DataError
from finetune.sampling import draw


def look(root: Path, background: str = "white", **wording: Any) -> Listing:
    """What a folder holds; raises where a run would."""
    made = scan.scan(Origin(str(root), Wording(**wording), background))
    made.refuse()
    return made


def split(pictures: Listing, holdout: str) -> tuple[list[Sample], list[Sample]]:
    return scan.split(pictures, holdout, Origin("", Wording()))


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", png(tiny.picture(0))[:200], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a"]
)
def test_damaged_pictures_are_refused_by_name(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(data)
    with pytest.raises(DataError, match=r"broken\.png: (not a (readable )?picture|an empty file)"):
        look(tmp_path, caption="x")


def test_captions_come_from_sidecars_metadata_or_one_for_all(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "a", 3)
    assert [s.caption for s in look(root).samples] == ["red disc", "blue disc", "green disc"]
    assert next(s.caption for s in look(root, trigger="tok").samples) == "tok, red disc"
    found = look(root, caption="one")
    assert {s.caption for s in found.samples} == {"one"} and len(found.notes["caption file not used, as --caption is for all"]) == 3
    rows = [json.dumps({"file_name": "00.png", "text": "from jsonl"}), "", json.dumps({"file_name": "01.png", "text": "two"})]
    (root / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    found = look(root)
    assert [s.caption for s in found.samples] == ["from jsonl", "two"] and found.dropped == {"02.png": "not in the metadata file"}
    (root / "metadata.jsonl").unlink()
    (root / "metadata.csv").write_text('file_name,text\n00.png,"a, b"\n', encoding="utf-8")
    assert [s.caption for s in look(root).samples] == ["a, b"]


def test_pictures_that_ship_are_found_from_anywhere_and_a_folder_of_ones_own_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(look(Path("finetune/bases/owl")).samples) == 8
    tiny.folder(tmp_path / "finetune" / "bases" / "owl", 3)
    assert len(look(Path("finetune/bases/owl")).samples) == 3
    with pytest.raises(DataError, match="finetune/bases/nope: no such folder"):
        look(Path("finetune/bases/nope"))


def remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda r: remove(r.iterdir()), "no pictures"),
    "no captions": (lambda r: remove(r.glob("*.txt")), r"00\.png, 01\.png, 02\.png: no caption"),
    "one caption missing": (lambda r: (r / "01.txt").unlink(), r"01\.png: no caption"),
    "caption not UTF-8": (lambda r: (r / "01.txt").write_bytes(b"\xff\xfe\x00caf\xe9"), r"01\.txt: not UTF-8"),
    "metadata names a missing file": (
        lambda r: (r / "metadata.jsonl").write_text('{"file_name": "9.png", "text": "x"}'),
        "line 1: no such file",
    ),
    "metadata leaves the folder": (
        lambda r: (r / "metadata.jsonl").write_text('{"file_name": "../x.png", "text": "x"}'),
        r"line 1: \.\./x\.png leaves the folder",
    ),
    "metadata is not JSON": (lambda r: (r / "metadata.jsonl").write_text("{"), "line 1: not JSON"),
    "metadata lacks text": (
        lambda r: (r / "metadata.csv").write_text("file_name,label\n00.png,x\n"),
        "line 2: expected file_name and text",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_are_refused_by_name(case: str, tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "a", 3)
    spoil, message = BAD_FOLDERS[case]
    spoil(root)
    with pytest.raises(DataError, match=message):
        look(root)


def test_what_is_dropped_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "find_spec", lambda name: None)
    root = tiny.folder(tmp_path / "a", 2)
    (root / "x.heic").write_bytes(b"")
    (root / ".hidden.png").write_bytes(b"")
    tiny.picture(9).save(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    found = look(root, caption="c")
    assert len(found.samples) == 2
    assert found.dropped == {
        "link.png": "a link that leaves the folder",
        "x.heic": ".heic needs a package: pip install 'finetune-diffusion[heic]'",
    }


def named(count: int) -> Listing:
    return Listing([tiny.sample(f"{i}", f"{i}", ("x",)) for i in range(count)])


def test_of_many_pictures_a_side_never_changes() -> None:
    sides = [[{s.content for s in side} for side in split(named(count), "0.4")] for count in (scan.MANY, 130)]
    assert sides[0][0] <= sides[1][0] and sides[0][1] <= sides[1][1]
    assert not sides[1][0] & sides[1][1]
    assert not named(scan.MANY).notes


@pytest.mark.parametrize(("count", "fraction", "held"), [(13, "0.1", 1), (8, "0.1", 1), (3, "0.01", 1), (40, "0.25", 10), (99, "0.5", 50)])
def test_of_few_pictures_exactly_the_fraction_is_held_out(count: int, fraction: str, held: int) -> None:
    found = named(count)
    found.samples += [replace(s, name=f"twin of {s.name}") for s in found.samples[:5]]  # such as one picture's second caption
    sides = split(found, fraction)
    assert [len({s.content for s in side}) for side in sides] == [count - held, held]
    assert not {s.content for s in sides[0]} & {s.content for s in sides[1]}, "twins on one side"
    assert found.notes[scan.FEW] == [s.name for s in sides[1]]


def test_a_folder_of_held_out_pictures(tmp_path: Path) -> None:
    small = look(tiny.folder(tmp_path / "a", 10))
    other = tiny.folder(tmp_path / "c", 4)
    train, held = split(small, str(other))
    assert len(train) == 6 and len(held) == 4, "a picture that is also in the held-out folder is not trained on"
    with pytest.raises(ConfigError, match="leaves no picture for training"):
        split(look(other), str(other))


def test_what_lies_in_a_runs_folder_is_not_trained_on(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 2)
    (root / "runs" / "lora" / "samples").mkdir(parents=True)
    tiny.picture(5).save(root / "runs" / "lora" / "samples" / "x.png")
    (root / "runs" / "lora" / "run.yaml").write_text("")
    found = look(root)
    assert len(found.samples) == 2 and len(found.notes["folder not used, as it is that of a run"]) == 1


def test_a_trigger_is_a_whole_word(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 2)
    (root / "00.txt").write_text("category of disc")
    (root / "01.txt").write_text("cat on a disc")
    assert [s.caption for s in look(root, trigger="cat").samples] == [
        "cat, category of disc",
        "cat on a disc",
    ]


def test_a_small_folder_always_has_a_held_out_picture(tmp_path: Path) -> None:
    for count in (2, 3, 5):
        train, held = split(look(tiny.folder(tmp_path / str(count), count)), "0.001")
        assert len(held) == 1 and len(train) == count - 1


def test_what_may_not_be_looked_at_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch, imgs: Path) -> None:
    def refuse(place: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"imgs: cannot be read \(Permission denied\)"):
        look(imgs)


def test_nothing_is_left_out_without_a_word(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 3)
    (root / "00.txt").rename(root / "00.TXT")
    (root / "raw.ARW").write_bytes(b"")
    (root / "02.jpg").write_bytes((root / "02.png").read_bytes())
    (root / "gone-masklabel.png").write_bytes((root / "02.png").read_bytes())
    (root / "sub").mkdir()
    (root / "sub" / "metadata.jsonl").write_text("")
    made = look(root)
    assert made.samples[0].caption == "red disc", "endings are read in any case"
    assert made.notes == {
        "not used: .arw": ["raw.ARW"],
        "shares its caption file with 02.jpg": ["02.png"],
        "mask without a picture": ["gone-masklabel.png"],
        "metadata below the folder's top, not used; name its folder as a source": ["sub/metadata.jsonl"],
    }
    (root / "metadata.csv").write_text("file_name,text\n00.png,from the table\n")
    made = scan.scan(Origin(str(root), Wording()))
    assert len(made.notes["caption file not used, as there is a metadata file"]) == 4


def test_a_changed_file_is_looked_at_again_whatever_its_time(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 1)
    tiny.picture(0).save(root / "00.bmp")
    (root / "00.png").unlink()
    before, stat = look(root).samples[0], (root / "00.bmp").stat()
    tiny.picture(5).save(root / "00.bmp")
    os.utime(root / "00.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (root / "00.bmp").stat().st_size == stat.st_size and look(root).samples[0].content != before.content


ROWS = {
    '{"file_name": "a\\u0000b.png", "text": "x"}': "line 1: no such file",
    '{"file_name": "%s.png", "text": "x"}' % ("a" * 300): "line 1: no such file",
    '{"file_name": "00.png", "text": "\\ud83d"}': r"00\.png: its caption holds half a character",
    '{"file_name": "00.png", "text": "a\\u0000b"}': r"00\.png: its caption holds NUL characters",
    '{"file_name": 5, "text": "x"}': "line 1: its file_name is not a text, but a number",
    '{"file_name": "00.png", "text": {"en": "x"}}': "line 1: its text is neither a text nor a list of texts, but an object",
    '{"file_name": "00.png", "text": "x", "text": "y"}': "line 1: not JSON .a key stands twice",
    '{"file_name": "00.png", "text": "\\u200b \\u2060"}': r"00\.png: no caption",
    "": r"metadata\.jsonl: holds no rows",
    '{"file_name": "/etc/passwd", "text": "x"}': "line 1: /etc/passwd leaves the folder",
    '{"file_name": "00.png", "text": "x"}\n{"file_name": "./00.png", "text": "y"}': r"line 2: \./00\.png stands twice",
}


@pytest.mark.parametrize("rows", ROWS)
def test_bad_rows_are_refused_by_line(rows: str, tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 1)
    (root / "metadata.jsonl").write_text(rows, encoding="utf-8")
    with pytest.raises(DataError, match=ROWS[rows]):
        look(root)


def test_an_open_quote_swallows_no_rows(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 2)
    (root / "metadata.csv").write_text('file_name,text\n00.png,"open\n01.png,x\n')
    with pytest.raises(DataError, match="not CSV"):
        look(root)


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_a_name_that_is_no_text_is_a_problem_with_its_name(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 1)
    os.rename(root / "00.png", os.path.join(os.fsencode(root), b"caf\xe9.png"))
    with pytest.raises(DataError, match="its name is not UTF-8"):
        look(root)


TABLES = {
    "file_name,text\n00.png,a fox, running\n": r"line 2: more fields than the 2 columns",
    "file_name,text,text\n00.png,a,b\n": "line 1: a column stands twice",
    "file_name;text\n00.png;a fox\n": "line 2: expected file_name and text, found file_name;text",
    "file_name,text\n": r"metadata\.csv: holds no rows",
    "file_name,text\n00.png\n": r"line 2: its text is neither|00\.png: no caption",
}


@pytest.mark.parametrize("table", TABLES)
def test_bad_tables_are_refused_by_line(table: str, tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 1)
    (root / "metadata.csv").write_text(table)
    with pytest.raises(DataError, match=TABLES[table]):
        look(root)


def test_an_empty_field_behind_the_last_column_is_no_word_lost(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 1)
    (root / "metadata.csv").write_text("file_name,text\n00.png,a fox,\n")
    assert look(root).samples[0].caption == "a fox"


@pytest.mark.parametrize("place", ["x.png", "00.txt", "metadata.jsonl", "metadata.parquet", "00.mask.png"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_among_the_files_is_refused_and_not_waited_for(place: str, tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 2)
    (root / place).unlink(missing_ok=True)
    os.mkfifo(root / place)
    with pytest.raises(DataError, match="a named pipe and no file"):
        scan.scan(Origin(str(root), Wording(caption="x" if place == "x.png" else None), beside=frozenset({LOSS_MASK}))).refuse()


def test_utf_16_without_a_mark_is_no_caption(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 2)
    (root / "00.txt").write_bytes("a red disc".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"00\.txt: not UTF-8: it holds NUL"):
        look(root)


def test_names_in_the_other_of_unicodes_ways_find_each_other(tmp_path: Path) -> None:
    composed, parted = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    root = tmp_path / "imgs"
    root.mkdir()
    for i, (picture, caption) in enumerate([(composed, parted), (f"{parted} 2", f"{composed} 2")]):
        tiny.picture(i).save(root / f"{picture}.png")
        Image.new("L", (24, 20), 255).save(root / f"{caption}.mask.png")
        (root / f"{caption}.txt").write_text(f"cup {i}")
    found = scan.scan(Origin(str(root), Wording(), beside=frozenset({LOSS_MASK})))
    assert sorted(s.caption for s in found.samples) == ["cup 0", "cup 1"] and all("loss_mask" in s.inputs for s in found.samples)
    assert found.notes.keys() == {"with a mask"} and not found.problems
    rows = [{"file_name": f"{name}.png", "text": "x"} for name in (parted, f"{composed} 2")]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(look(root).samples) == 2


def test_what_this_program_drew_is_not_trained_on(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 2)
    older = {"prompt": "x", "seed": 1, "base": "tiny", "scheduler": "ddim"}
    draw.save_png(tiny.picture(8), root / "renamed.png", {"prompt": "x"})
    info = PngInfo()
    info.add_itxt("parameters", json.dumps(older))  # as versions before wrote them
    tiny.picture(9).save(root / "older.png", pnginfo=info)
    info = PngInfo()
    info.add_text("parameters", "a fox, Steps: 20, Sampler: Euler")  # of another program, whose pictures may be meant
    tiny.picture(10).save(root / "other.png", pnginfo=info)
    found = look(root, caption="x")
    assert [s.name for s in found.samples] == ["00.png", "01.png", "other.png"]
    assert found.notes["not used, as this program drew it"] == ["older.png", "renamed.png"]
    with pytest.raises(DataError, match="no pictures but 1 that this program drew"):
        draw.save_png(tiny.picture(8), tmp_path / "own" / "a.png", {})
        look(tmp_path / "own", caption="x")


def test_what_other_tools_read_in_a_caption_is_said(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 3)
    (root / "00.txt").write_text("a (red:1.3) disc")
    (root / "01.txt").write_text("a {red|blue} disc (large)")
    notes = look(root).notes
    assert notes[scan.WEIGHTS] == ["00.png"]
    assert [names for text, names in notes.items() if "data.wildcards=true" in text] == [["01.png"]]
