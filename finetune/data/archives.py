"""Pictures that lie many in one file: webdataset tar shards and Parquet tables with image bytes. Torch-free."""

import tarfile
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from finetune import files
from finetune.data.captions import in_words
from finetune.data.decode import EXTENSIONS
from finetune.data.file import reading
from finetune.data.folder import caption_lines, kind_beside
from finetune.data.sample import Item, Listing, Problem
from finetune.data.tables import Columns, cell_captions
from finetune.errors import DataError, line
from finetune.text import decoded, from_json

TEXTS = (".txt", ".caption")


def stamp(path: Path, *within: object) -> str:
    stat = path.stat()
    return "\n".join(map(str, (path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, *within)))


def _part(path: str, offset: int, size: int, name: str) -> bytes:
    try:
        with files.opened(path) as f:
            f.seek(offset)
            return f.read(size)
    except OSError as e:
        raise DataError(f"{name}: cannot be read ({e.strerror})") from e


def tar_items(path: Path, label: str, listing: Listing, columns: Columns, each_line: bool) -> Iterator[Item]:
    """A webdataset shard: members whose names are the same up to the file name's first dot are one sample: `0001.jpg`, `0001.txt`.

    Nothing is unpacked: members are read where they lie, so that no name can lead anywhere. `label` is the shard's name in its source.

    Raises:
        DataError: not a plain tar file.
    """
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    whole = path.stat().st_size
    with reading(str(path), "not a tar file", "compressed shards cannot be read in place; `gunzip` them" if _packed(path) else ""):
        files.check_regular(path)
        with tarfile.open(path, "r:") as tar:
            for m in tar:
                if m.size < 0 or m.offset_data + m.size > whole or tar.offset <= m.offset:
                    raise tarfile.ReadError(f"{line(m.name, 60)} lies outside of it")
                folder, _, file = m.name.rpartition("/")
                stem, _, end = file.partition(".")
                if m.issparse():  # what is read in place would be something else
                    listing.dropped[f"{label}/{m.name}"] = "a file with holes inside an archive"
                elif m.isfile() and not file.startswith("."):
                    groups.setdefault(f"{folder}/{stem}".lstrip("/"), {})[f".{end.lower()}"] = (m.offset_data, m.size)
                elif not m.isdir() and not m.isfile():
                    listing.dropped[f"{label}/{m.name}"] = "a link inside an archive"
            behind = tar.offset
        if _holds(path, behind):
            listing.problems.append(Problem(label, f"damaged or joined: {whole - behind} bytes behind its end are not read"))
    place = str(path)
    for stem, members in groups.items():
        pictures = [end for end in members if end in EXTENSIONS and not kind_beside(stem + end)]
        name = f"{label}/{stem}{pictures[0] if pictures else ''}"
        if not pictures:
            listing.dropped[name] = f"no picture among {', '.join(members)}"
            continue
        for other in pictures[1:]:
            listing.dropped[f"{label}/{stem}{other}"] = f"a second picture of one sample, beside {pictures[0]}"
        offset, size = members[pictures[0]]
        parts = {end: partial(_part, place, *members[end], name) for end in members}
        captions = _sample_captions(name, parts, listing, columns, each_line)
        beside = tuple((kind, parts[end]) for end in sorted(parts) if (kind := kind_beside(stem + end)))
        words = in_words(stem.rpartition("/")[2])
        yield Item(name, partial(_part, place, offset, size, name), stamp(path, offset), captions, words, beside=beside)


def _packed(path: Path) -> bool:
    return path.suffix in (".gz", ".tgz")


def _holds(path: Path, behind: int) -> bool:
    """Whether a file has anything but zeros behind a place."""
    with files.opened(path) as f:
        f.seek(behind)
        return any(part.strip(b"\0") for part in iter(partial(f.read, 2**20), b""))


def _sample_captions(name: str, members: Mapping[str, Any], listing: Listing, columns: Columns, each_line: bool) -> tuple[str, ...]:
    """The caption of a sample: its text file, or the caption of its JSON file."""
    try:
        for end in TEXTS:
            if end in members:
                return caption_lines(decoded(members[end]()), each_line)
        if ".json" in members:
            row = from_json(members[".json"]())
            column = columns.caption_of(list(row)) if isinstance(row, dict) else None
            return cell_captions(row[column] if column else None, name, listing)
    except ValueError as e:
        listing.problems.append(Problem(name, f"its caption cannot be read ({e})", "save it as UTF-8"))
        return ("?",)
    return ()


def parquet_items(path: Path, label: str, listing: Listing, columns: Columns) -> Iterator[Item]:
    """A table whose picture column holds bytes, or a record of `bytes` and `path`, as `datasets` writes them.

    Raises:
        DataError: not a Parquet file, or without a column of pictures.
    """
    import pyarrow.parquet as pq

    with reading(str(path), "not a Parquet file"):
        files.check_regular(path)
        table = pq.ParquetFile(path)
        there = table.schema_arrow.names
    picture, caption = columns.image_of(there), columns.caption_of(there)
    if picture is None:
        raise DataError(f"{path}: no column of pictures; there are {', '.join(there)}", "--set data.image_column=NAME says which")
    if caption is None:
        listing.note(f"no caption column is known among {', '.join(there)}; data.caption_column names one", label)
    for group in range(table.num_row_groups):
        with reading(f"{path}, group {group}", "cannot be read"):
            count = table.metadata.row_group(group).num_rows
            texts = table.read_row_group(group, [caption]).column(0).to_pylist() if caption else [None] * count
        for row, text in enumerate(texts):
            name = f"{label}/{group}.{row}"
            read = partial(_cell, str(path), group, picture, row, name)
            yield Item(name, read, stamp(path, group, row), cell_captions(text, name, listing))


def _cell(path: str, group: int, column: str, row: int, name: str) -> bytes:
    with reading(name, "cannot be read"):
        value = _column(path, group, column)[row].as_py()
    return image_bytes(value, name)


@lru_cache(maxsize=2)
def _column(path: str, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read_row_group(group, [column]).column(0)


def image_bytes(value: object, name: str) -> bytes:
    """Raises:
    DataError: the cell holds no picture's bytes.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise DataError(
            f"{name}: holds no picture's bytes but {type(data).__name__}", "another data.image_column, or a table with the bytes inside"
        )
    return data
