"""Folders of pictures: captions beside them or in a metadata file, masks beside them, and the `10_concept` convention. Torch-free."""

import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from finetune import libraries
from finetune.data.captions import in_words
from finetune.data.decode import EXTENSIONS
from finetune.data.file import File, read_caption_file
from finetune.data.inputs import BESIDE
from finetune.data.sample import Item, Listing, Problem
from finetune.data.tables import METADATA, Columns, metadata
from finetune.errors import DataError
from finetune.run_folder import RECORD
from finetune.text import HALF, UnicodeNames, blank

PICTURE_LIKE = {".jxl", ".jp2", ".psd", ".svg", ".ico", ".tga", ".eps", ".raw", ".dng", ".cr2", ".nef"}
HEIC = {".heic", ".heif"}
CAPTIONS = (".txt", ".caption")
NO_CAPTIONS = {"readme.txt", "license.txt", "licence.txt", "notice.txt", "requirements.txt"}
ENDINGS = {name: re.compile(kind.ending, re.IGNORECASE) for name, kind in BESIDE.items()}
CONCEPT = re.compile(r"(\d{1,3})_(.+)")
NO_CAPTION = "put the caption in a .txt file of the same name, or give --caption or --trigger for all"


def folder_items(
    folder: Path, listing: Listing, each_line: bool, columns: Columns, skip: Callable[[str], bool] = lambda name: False
) -> Iterator[Item]:
    """The pictures of a folder by name; what is left out or wrong is noted in `listing`, but for names to `skip`.

    Captions: `metadata.jsonl`, `.csv` or `.parquet` (file_name and a caption), else `name.txt` or `name.caption` beside the picture,
    whose lines are one caption, or with `each_line` one each.
    """
    names = [name for name in walk(folder, listing) if not skip(name)]
    pictures = [name for name in names if _usable(name, listing)]
    captions = sidecars(names, listing)
    stems = {_stem(n) for n in pictures}
    own_file, beside = _alike(stems, captions), _all_beside(names, stems, listing)
    _alone(names, captions, {*own_file.values(), *chain.from_iterable(found.own.values() for found in beside.values())}, listing)
    del stems
    concepts = _concepts(pictures, listing)
    listed = metadata(folder, names, listing, columns)
    if listed is not None:
        for name in pictures:
            if own_file.get(_stem(name), _stem(name)) in captions:
                listing.note("caption file not used, as there is a metadata file", name)
        listing.dropped |= dict.fromkeys((n for n in pictures if n not in listed), "not in the metadata file")
        for name in listed.keys() - set(pictures):
            listing.dropped.setdefault(name, "listed in the metadata file, but not a picture that is read")
        pictures = [n for n in pictures if n in listed]
    top, place = folder.resolve().name, str(folder)
    del names  # not needed while the pictures are looked at, of which there may be millions
    for name in pictures:
        stem = _stem(name)
        repeats, concept = concepts.get(name.partition("/")[0], (1, ""))
        texts = listed[name] if listed is not None else _sidecar(place, own_file.get(stem, stem), captions, listing, each_line)
        texts = texts if any(texts) or not concept else (concept,)
        others = tuple((kind, File(place, file)) for kind, found in beside.items() if (file := found.of(stem)))
        words, around = in_words(stem.rpartition("/")[2]), concept or in_words(name.rpartition("/")[0].rpartition("/")[2] or top)
        yield Item(name, File(place, name), _stamp(folder, name), texts, words, repeats, around, others)


def _stamp(folder: Path, name: str) -> str:
    try:
        return file_stamp(name, os.stat(os.path.join(folder, name)))
    except OSError:  # a link to nothing: reading it says so
        return name


def file_stamp(name: str, stat: os.stat_result) -> str:
    """What says that a file is the one that was looked at."""
    return f"{name}\n{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def walk(folder: Path, listing: Listing) -> Iterator[str]:
    """The names of files below a folder, in order, hidden ones and the folders of runs left out. No link leads out of the folder.

    Raises:
        DataError: a folder cannot be read.
    """
    root = os.path.realpath(folder)

    def inside(place: str, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(place) as there:
                seen = {e.name: (e.is_symlink(), _is_folder(e)) for e in there if not e.name.startswith(".")}
        except OSError as e:
            raise DataError(f"{place}: cannot be read ({e.strerror})", "give a folder of pictures that you may read") from e
        for ancestor in sorted(seen):
            link, is_folder = seen[ancestor]
            name, path = prefix + ancestor, os.path.join(place, ancestor)
            if HALF.search(ancestor):  # how Python shows bytes that are no text
                listing.problems.append(Problem(ascii(name), "its name is not UTF-8", "rename it"))
                continue
            if link and not os.path.realpath(path).startswith(root + os.sep):
                listing.dropped[name] = "a link that leaves the folder"
            elif not is_folder:
                yield name
            elif link:
                listing.dropped[name] = "a link to a folder, which is not followed"
            elif os.path.exists(os.path.join(path, RECORD)):  # with --data . it would learn from its own samples
                listing.note("folder not used, as it is that of a run", name)
            else:
                yield from inside(path, name + "/")

    yield from inside(str(folder), "")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file that cannot be read
        return False


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def is_archive(name: str) -> bool:
    return name.endswith((".tar", ".parquet")) and name not in METADATA


def kind_beside(name: str) -> str | None:
    """What a picture's file is beside another, by the names of inputs; None where it is a picture of its own."""
    stem, _, end = name.rpartition(".")
    if f".{end.lower()}" not in EXTENSIONS:
        return None
    return next((kind for kind, ending in ENDINGS.items() if ending.search(stem)), None)


class _Beside(NamedTuple):
    """Files of one kind that lie beside pictures."""

    files: dict[str, str]  # by the stem that each belongs to
    own: dict[str, str]  # of pictures whose stem is spelt otherwise, that stem

    def of(self, stem: str) -> str | None:
        return self.files.get(self.own.get(stem, stem))


def _all_beside(names: Iterable[str], stems: Collection[str], listing: Listing) -> dict[str, _Beside]:
    """By the names of inputs; `stems` are the pictures'. Of several for one picture, the last by name."""
    files: dict[str, dict[str, str]] = {kind: {} for kind in BESIDE}
    for name in names:
        if kind := kind_beside(name):
            stem = ENDINGS[kind].sub("", _stem(name))
            if other := files[kind].get(stem):
                listing.note(f"mask file not used, as there is {name}", other)
            files[kind][stem] = name
    return {kind: _Beside(there, _alike(stems, there)) for kind, there in files.items()}


def _usable(name: str, listing: Listing) -> bool:
    """Whether a file is a picture to train on; says so where it looks like one and is not read."""
    end = f".{name.rpartition('.')[2].lower()}"
    if end in HEIC and find_spec("pillow_heif") is None:
        listing.dropped[name] = f"{end} needs a package: {libraries.install('heic')}"
    elif end in EXTENSIONS:
        return kind_beside(name) is None
    elif end in PICTURE_LIKE:
        listing.dropped[name] = f"{end} is not read; convert it to PNG"
    elif is_archive(name):
        listing.dropped[name] = "an archive beside pictures; name it as a source of its own"
    return False


def sidecars(names: Iterable[str], listing: Listing) -> dict[str, str]:
    """The ending of each stem's caption file, whatever case it is in; .txt before .caption."""
    out: dict[str, str] = {}
    for name in sorted((n for n in names if n.lower().endswith(CAPTIONS)), key=lambda n: (n.lower().endswith(CAPTIONS[1]), n)):
        stem, _, end = name.rpartition(".")
        if name.rpartition("/")[2].lower() in NO_CAPTIONS:
            continue
        if out.setdefault(stem, sys.intern(end)) != end:
            listing.note(f"caption file not used, as there is a {out[stem]} file", name)
    return out


def _alike(stems: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Pictures whose caption or mask is named alike but in the other of Unicode's ways: the stem of each, and that of the other file."""
    known = UnicodeNames(other for other in others if other not in stems)
    spellings = {stem: known.find(stem) for stem in stems if not stem.isascii() and stem not in others}
    return {stem: other for stem, other in spellings.items() if other is not None}


def _alone(names: Iterable[str], captions: Mapping[str, str], alike: Collection[str], listing: Listing) -> None:
    """Notes what has no picture, as its name may be mistyped; what shares its name with another; and what is not used at all.

    `alike` are stems that belong to a picture although they are not written as its own.
    """
    stems: dict[str, str] = {}  # with the first of its pictures
    for name in sorted(names):
        end = f".{name.rpartition('.')[2].lower()}" if "." in name.rpartition("/")[2] else "no ending"
        if end in EXTENSIONS and kind_beside(name) is None:
            first = stems.setdefault(_stem(name), name)
            if first != name and _stem(name) in captions:
                listing.note(f"shares its caption file with {first}", name)
        elif name.endswith(METADATA) and name not in METADATA:
            listing.note("metadata below the folder's top, not used; name its folder as a source", name)
        elif not (end in EXTENSIONS or end in PICTURE_LIKE or end in CAPTIONS or is_archive(name) or name in METADATA):
            listing.note(f"not used: {end}", name)
    for stem, end in captions.items():
        if stem not in stems and stem not in alike:
            listing.note("caption file without a picture", f"{stem}.{end}")
    for name in sorted(names):
        if (kind := kind_beside(name)) and ENDINGS[kind].sub("", _stem(name)) not in stems.keys() | alike:
            listing.note("mask without a picture", name)


def _concepts(pictures: Iterable[str], listing: Listing) -> dict[str, tuple[int, str]]:
    """Top folder -> repeats and name, where every picture lies in a folder such as `10_sks dog`."""
    tops = {n.partition("/")[0] if "/" in n else "" for n in pictures}
    named = {top: CONCEPT.fullmatch(top) for top in tops}
    if not tops or not all(named.values()):
        return {}
    out = {top: (int(m[1]), m[2].replace("_", " ").strip()) for top, m in named.items() if m}
    if not all(1 <= repeats <= 500 for repeats, _ in out.values()):
        return {}
    for top, (repeats, concept) in sorted(out.items()):
        text = f"in {top}/: shown {repeats} times an epoch, as {concept!r} where there is no caption"
        listing.notes[text] = [n for n in pictures if n.startswith(top + "/")]
    return out


def _sidecar(folder: str, stem: str, endings: Mapping[str, str], listing: Listing, each_line: bool) -> tuple[str, ...]:
    """The captions of the file beside a picture."""
    if stem not in endings:
        return ()
    name = f"{stem}.{endings[stem]}"
    contents = read_caption_file(os.path.join(folder, name), name, listing)
    return ("?",) if contents is None else caption_lines(contents, each_line)  # it has one, which is a problem of its own


def caption_lines(text: str, each: bool) -> tuple[str, ...]:
    """A caption file's captions: all of it, or with `each` every line; one that is empty where there is none."""
    parts = [" ".join(line.split()) for line in (text.splitlines() if each else [text])]
    return tuple(part for part in parts if not blank(part)) or ("",)
