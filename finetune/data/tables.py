"""Captions in tables: which columns hold what, what a cell says, and the metadata file of a folder. Torch-free."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune import files
from finetune.data.file import read_caption_file, reading
from finetune.data.sample import Listing, Problem
from finetune.errors import DataError
from finetune.text import UnicodeNames, blank, from_json

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class Columns:
    """The names of the columns that hold a picture and its caption: as given, or the first that is there of those in use."""

    IMAGE = ("image", "img", "jpg", "png", "webp", "picture", "pixel_values")
    CAPTION = ("text", "caption", "captions", "prompt", "txt", "description", "sentences")

    def __init__(self, image: str | None = None, caption: str | None = None) -> None:
        self.image, self.caption = image, caption

    def caption_of(self, there: Sequence[str]) -> str | None:
        return self._one("caption", self.caption, self.CAPTION, there)

    def image_of(self, there: Sequence[str]) -> str | None:
        return self._one("image", self.image, self.IMAGE, there)

    @staticmethod
    def _one(what: str, given: str | None, usual: Sequence[str], there: Sequence[str]) -> str | None:
        if given is not None and given not in there:
            raise DataError(f"data.{what}_column {given}: no such column; there are {', '.join(there)}")
        return given or next((c for c in usual if c in there), None)


USUAL = Columns()


def caption_list(value: object) -> tuple[str, ...] | None:
    """A caption cell, a text or several, perhaps with gaps; None for anything else."""
    parts = [value] if isinstance(value, str) else value
    if parts is None:
        return ()
    if not isinstance(parts, Sequence) or not all(isinstance(v, str) or v is None for v in parts):
        return None
    return tuple(" ".join(v.split()) for v in parts if v and not blank(v))


def cell_captions(value: object, name: str, listing: Listing) -> tuple[str, ...]:
    """The captions of a cell; a problem where it holds something else."""
    captions = caption_list(value)
    if captions is None:
        listing.problems.append(Problem(name, f"its caption is neither a text nor a list of texts, but {_kind(value)}"))
        return ("?",)
    return captions


def metadata(folder: Path, names: Sequence[str], listing: Listing, columns: Columns) -> dict[str, tuple[str, ...]] | None:
    """file_name -> captions of the metadata file, or None where there is none."""
    there = [name for name in METADATA if name in names]
    if not there:
        return None
    path, listed = folder / there[0], {}
    listing.dropped |= dict.fromkeys(there[1:], f"not used, as there is a {path.name}")
    root, known, problems = os.path.realpath(folder), UnicodeNames(names), len(listing.problems)
    for where, row in _rows(path, listing):
        try:
            name = columns.caption_of(list(row))
        except DataError as e:
            listing.problems.append(Problem(where, e.message))
            continue
        file, captions = row.get("file_name"), caption_list(row[name]) if name else None
        if "file_name" not in row or name is None:
            listing.problems.append(Problem(where, f"expected file_name and text, found {', '.join(map(str, row)) or 'nothing'}"))
        elif not isinstance(file, str):
            listing.problems.append(Problem(where, f"its file_name is not a text, but {_kind(file)}"))
        elif captions is None:
            listing.problems.append(Problem(where, f"its {name} is neither a text nor a list of texts, but {_kind(row[name])}"))
        elif (clean := _inside(root, file)) is None:
            listing.problems.append(Problem(where, f"{file} leaves the folder", "name files below the folder of the metadata file"))
        elif (there_as := known.find(clean)) is None:
            listing.problems.append(Problem(where, f"no such file: {file}", "correct the name, or remove the row"))
        elif there_as in listed:
            listing.problems.append(Problem(where, f"{file} stands twice", "give its captions as one list, or leave one out"))
        else:
            listed[there_as] = captions
    if not listed and len(listing.problems) == problems:
        listing.problems.append(Problem(path.name, "holds no rows", "name the pictures in it, or remove it"))
    return listed


def _kind(value: object) -> str:
    """What a cell holds, in words."""
    kinds = {
        type(None): "empty",
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
        list: "a list with other things",
    }
    return kinds.get(type(value), type(value).__name__)


def _inside(root: str, file: str) -> str | None:
    """A file's name below the folder, as `walk` gives it, or None where it leads elsewhere."""
    path = os.path.normpath(os.path.join(root, file.replace("\\", "/")))
    return path[len(root) + 1 :].replace(os.sep, "/") if path.startswith(root + os.sep) else None


def _rows(path: Path, listing: Listing) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, and the row."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with reading(str(path), "not a Parquet file"):
            files.check_regular(path)
            rows = pq.read_table(path).to_pylist()
        yield from ((f"{path.name}, row {i}", row) for i, row in enumerate(rows))
        return
    if (contents := read_caption_file(str(path), path.name, listing)) is not None:
        yield from (_csv if path.suffix == ".csv" else _json_lines)(path.name, contents, listing)


def _csv(name: str, contents: str, listing: Listing) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(contents, newline=""), strict=True)
    try:
        if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
            listing.problems.append(Problem(f"{name}, line 1", "a column stands twice", "leave one out"))
        for row in reader:
            where = f"{name}, line {reader.line_num}"
            if any(row.pop(None, ())):  # what stands behind the last column
                quotes = 'put captions that hold commas into quotes: "a fox, running"'
                listing.problems.append(Problem(where, f"more fields than the {len(row)} columns", quotes))
            else:
                yield where, row
    except csv.Error as e:
        listing.problems.append(Problem(f"{name}, line {reader.line_num}", f"not CSV ({e})", "close every quote"))


def _json_lines(name: str, contents: str, listing: Listing) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(contents.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = from_json(line, _once)
        except ValueError as e:
            listing.problems.append(Problem(where, f"not JSON ({e})"))
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            listing.problems.append(Problem(where, "expected an object with file_name and text"))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands twice")
    return row
