"""Every kind of place that pictures come from gives the same samples, and says by name what is wrong with it."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import bad_pictures
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from test_scan import look

from finetune import config
from finetune.data import hub, scan
from finetune.data.captions import Wording
from finetune.data.sample import Listing
from finetune.data.scan import Origin
from finetune.data.tables import Columns
from finetune.errors import AccessError, ConfigError, DataError
from finetune.preparation.data import gathered

CAPTIONS = ["red disc", "blue disc", "green disc"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny.folder(tmp_path / "imgs", 3)


def data(root: Path) -> list[bytes]:
    return [(root / f"{i:02d}.png").read_bytes() for i in range(3)]


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def as_tar(root: Path, out: Path) -> Path:
    parts: dict[str, bytes] = {}
    for i, picture in enumerate(data(root)):
        parts |= {f"shard/{i}.png": picture}
        parts |= {f"shard/{i}.txt": CAPTIONS[i].encode()} if i else {f"shard/{i}.json": json.dumps({"caption": CAPTIONS[i]}).encode()}
    return tar(out / "a.tar", parts)


def as_shards(root: Path, out: Path) -> Path:
    (out / "shards").mkdir()
    tar(
        out / "shards" / "0.tar",
        {"0.png": data(root)[0], "0.txt": CAPTIONS[0].encode(), "1.png": data(root)[1], "1.txt": CAPTIONS[1].encode()},
    )
    tar(out / "shards" / "1.tar", {"2.png": data(root)[2], "2.txt": CAPTIONS[2].encode()})
    return out / "shards"


def as_parquet(root: Path, out: Path) -> Path:
    records = [{"bytes": d, "path": f"{i}.png"} for i, d in enumerate(data(root))]
    pq.write_table(pa.table({"image": records, "text": CAPTIONS, "extra": [1, 2, 3]}), out / "a.parquet", row_group_size=2)
    return out / "a.parquet"


def as_bytes(root: Path, out: Path) -> Path:
    pq.write_table(pa.table({"jpg": data(root), "caption": CAPTIONS}), out / "b.parquet")
    return out / "b.parquet"


def as_saved(root: Path, out: Path) -> Path:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": d, "path": None} for d in data(root)], "caption": CAPTIONS}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(out / "saved"))
    return out / "saved"


def as_splits(root: Path, out: Path) -> Path:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": d, "path": None} for d in data(root)], "caption": CAPTIONS}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(str(out / "splits"))
    return out / "splits"


def with_metadata(kind: str) -> Callable[[Path, Path], Path]:
    def make(root: Path, out: Path) -> Path:
        for path in root.glob("*.txt"):
            path.unlink()
        rows = [{"file_name": f"{i:02d}.png", "text": c} for i, c in enumerate(CAPTIONS)]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")
        else:
            (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return root

    return make


KINDS: dict[str, Callable[[Path, Path], Path]] = {
    "folder": lambda root, out: root,
    "tar": as_tar,
    "folder of shards": as_shards,
    "parquet": as_parquet,
    "parquet of bytes": as_bytes,
    "save_to_disk": as_saved,
    "save_to_disk with splits": as_splits,
    "metadata.parquet": with_metadata("parquet"),
    "metadata.jsonl": with_metadata("jsonl"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_place_gives_the_same_samples(kind: str, root: Path, tmp_path: Path) -> None:
    expected = [(s.content, s.captions, s.original) for s in look(root).samples]
    place = KINDS[kind](root, tmp_path)
    for _ in range(2):  # the second time from the index
        made = look(place).samples
        assert [(s.content, s.captions, s.original) for s in made] == expected
        assert [s.read() for s in made] == data(root)


def test_a_dataset_of_the_hub_is_read_through_its_library(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, revision: str | None) -> Any:
        asked.append((name, revision))
        return datasets.load_from_disk(str(as_splits(root, tmp_path)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [s.caption for s in scan.scan(Origin("someone/things@v2", Wording())).samples] == CAPTIONS
    assert asked == [("someone/things", "v2")]
    with pytest.raises(ConfigError, match=r"data\.split validation: .* has train, test"):
        scan.scan(Origin("someone/things", Wording(), split="validation"))


def test_what_is_no_dataset_is_an_error_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(AccessError, match="--data no-one/nothing: no such folder, and no dataset that the Hub gives"):
        scan.scan(Origin("no-one/nothing", Wording()))
    with pytest.raises(DataError, match="nothing: no such folder or file"):
        scan.scan(Origin("nothing", Wording()))


def test_a_table_may_not_name_files_elsewhere(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(data(root)[0])
    cell = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # which `datasets` does not make into bytes
    features = datasets.Features({"image": cell, "text": datasets.Value("string")})
    rows = {"image": [{"bytes": None, "path": str(secret)}], "text": ["x"]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "names"))
    with pytest.raises(DataError, match="names a file outside of the dataset"):
        look(tmp_path / "names")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": str(secret)}], "text": ["x"]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet/0\.0.*holds no picture's bytes"):
        look(tmp_path / "p.parquet")


def test_a_tar_member_is_read_in_place_wherever_its_name_leads(root: Path, tmp_path: Path) -> None:
    made = look(tar(tmp_path / "evil.tar", {"../../up.png": data(root)[0], "../../up.txt": b"x"}))
    assert len(made.samples) == 1 and sorted(p.name for p in tmp_path.iterdir()) == ["evil.tar", "imgs"]


BAD_PLACES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not a tar": (lambda p: (p / "x.tar").write_bytes(b"no tar at all" * 100), "not a tar file"),
    "not Parquet": (lambda p: (p / "x.parquet").write_bytes(b"no"), "not a Parquet file"),
    "no pictures in it": (lambda p: pq.write_table(pa.table({"a": [1]}), p / "x.parquet"), "no column of pictures; there are a"),
    "no archive": (lambda p: (p / "x.zip").write_bytes(b"PK"), "neither a folder nor an archive"),
    "no captions": (lambda p: tar(p / "x.tar", {"0.png": bad_pictures.GOOD["plain.png"]}), r"x\.tar/0\.png: no caption"),
    "caption not UTF-8": (
        lambda p: tar(p / "x.tar", {"0.png": bad_pictures.GOOD["plain.png"], "0.txt": b"\xff"}),
        r"x\.tar/0\.png: its caption cannot be read",
    ),
    "damaged inside": (lambda p: tar(p / "x.tar", {"0.png": b"no", "0.txt": b"x"}), r"x\.tar/0\.png: not a picture"),
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_bad_places_are_refused_by_name(case: str, tmp_path: Path) -> None:
    make, message = BAD_PLACES[case]
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        look(next(p for p in tmp_path.iterdir() if p.stem == "x"))


def test_columns_are_found_or_named(root: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"pic": data(root), "said": [["one", "two"], ["three"], []]}), tmp_path / "c.parquet")
    place = str(tmp_path / "c.parquet")
    made = scan.scan(Origin(place, Wording(trigger="t"), columns=Columns("pic", "said")))
    assert [s.captions for s in made.samples] == [("t, one", "t, two"), ("t, three",), ("t",)]
    with pytest.raises(DataError, match="no column of pictures; there are pic, said"):
        scan.scan(Origin(place, Wording()))
    with pytest.raises(DataError, match=r"data\.image_column nope: no such column; there are pic, said"):
        scan.scan(Origin(place, Wording(), columns=Columns("nope")))


def test_folders_with_repeats(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "d" / "10_sks dog", 2)
    tiny.folder(tmp_path / "d" / "3_a_cat", 1)
    (tmp_path / "d" / "10_sks dog" / "00.txt").unlink()
    made = look(tmp_path / "d")
    assert [(s.name, s.caption, s.times) for s in made.samples] == [
        ("10_sks dog/00.png", "sks dog", Fraction(10)),
        ("10_sks dog/01.png", "blue disc", Fraction(10)),
        ("3_a_cat/00.png", "red disc", Fraction(3)),
    ]
    assert "in 10_sks dog/: shown 10 times an epoch, as 'sks dog' where there is no caption" in made.notes
    tiny.picture(50).save(tmp_path / "d" / "loose.png")
    (tmp_path / "d" / "loose.txt").write_text("x")
    assert {s.times for s in look(tmp_path / "d", trigger="t").samples} == {Fraction(1)}, "with others beside them, names are names"


def test_several_sources_have_repeats_or_weights(settings: Callable[..., dict[str, Any]], root: Path, tmp_path: Path) -> None:
    other = tiny.folder(tmp_path / "other", 6)
    for path in root.glob("*.txt"):
        path.unlink()

    def times(*sources: dict[str, Any], **more: Any) -> dict[str, Fraction]:
        made = gathered(config.parse(settings() | {"data": {"sources": list(sources), "trigger": "t", **more}}))
        return {s.name: s.times for s in made.train}

    repeated = times({"path": str(root), "repeats": 4, "caption": "x"}, {"path": str(other)})
    assert [repeated[f"{root}/00.png"], repeated[f"{other}/00.png"]] == [4, 1]
    weighted = times({"path": str(root), "weight": 3}, {"path": str(other), "weight": 1})
    assert sum(v for k, v in weighted.items() if k.startswith(str(root))) == 3 * sum(
        v for k, v in weighted.items() if k.startswith(str(other))
    )
    (other / "2_a").mkdir()
    for path in [p for p in sorted(other.iterdir()) if p.is_file() and int(p.stem) < 2]:
        path.rename(other / "2_a" / path.name)
    (other / "1_b").mkdir()
    for path in [p for p in other.iterdir() if p.is_file()]:
        path.rename(other / "1_b" / path.name)
    both = times({"path": str(root), "weight": 1}, {"path": str(other), "weight": 1})
    assert both[f"{other}/2_a/00.png"] == 2 * both[f"{other}/1_b/03.png"], "repeats hold among the pictures of a source"
    assert sum(v for k, v in both.items() if k.startswith(str(root))) == sum(v for k, v in both.items() if k.startswith(str(other)))
    refused: dict[str, list[dict[str, Any]]] = {
        "give every source a weight, or none": [{"path": str(root), "weight": 3}, {"path": str(other)}],
        "give one of them": [{"path": str(root), "weight": 3, "repeats": 2}, {"path": str(other), "weight": 1}],
        r"data\.sources\.0\.pth: no such setting; did you mean data\.sources\.0\.path\?": [{"pth": str(root)}],
    }
    for message, wrong in refused.items():
        with pytest.raises(ConfigError, match=message):
            times(*wrong)


def test_an_archive_beside_pictures_is_not_passed_over_in_silence(root: Path, tmp_path: Path) -> None:
    as_tar(root, root)
    assert look(root).dropped == {"a.tar": "an archive beside pictures; name it as a source of its own"}


def test_a_folder_of_save_to_disk_is_known(root: Path, tmp_path: Path) -> None:
    assert hub.saved(as_saved(root, tmp_path)) and not hub.saved(root)
    assert len(list(scan.items(Origin(str(root), Wording()), Listing()))) == 3


def test_shards_of_one_name_are_not_taken_for_each_other(tmp_path: Path) -> None:
    for place, seed in (("x", 0), ("y", 1)):
        (tmp_path / "s" / place).mkdir(parents=True)
        path = tar(
            tmp_path / "s" / place / "0.tar", {"0.bmp": bad_pictures.saved(bad_pictures.photo(seed), "BMP"), "0.txt": place.encode()}
        )
        os.utime(path, ns=(1, 1))
    for _ in range(2):
        made = look(tmp_path / "s").samples
        assert [(s.name, s.caption) for s in made] == [("x/0.tar/0.bmp", "x"), ("y/0.tar/0.bmp", "y")] and made[0].content != made[
            1
        ].content


def test_a_tar_that_ends_early_or_holds_more_is_said(root: Path, tmp_path: Path) -> None:
    path = as_tar(root, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    with pytest.raises(DataError, match=r"a\.tar: damaged or joined"):
        look(path)
    path.write_bytes(whole[: whole.index(b"shard/2.png")] + b"\1" * 512 + whole[whole.index(b"shard/2.png") + 512 :])
    with pytest.raises(DataError, match=r"a\.tar: damaged or joined|not a tar"):
        look(path)


def test_what_has_no_caption_column_is_said(root: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": data(root), "words": CAPTIONS}), tmp_path / "w.parquet")
    made = look(tmp_path / "w.parquet", trigger="t")
    assert list(made.notes) == ["no caption column is known among image, words; data.caption_column names one"]
    pq.write_table(pa.table({"image": data(root), "text": [1, 2, 3]}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match=r"n\.parquet/0\.0.*neither a text nor a list"):
        look(tmp_path / "n.parquet")


def test_a_setting_for_tables_is_refused_for_a_folder(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.split test: .* is a folder of pictures"):
        scan.scan(Origin(str(root), Wording(), split="test"))
