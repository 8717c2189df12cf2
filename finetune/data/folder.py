"""A folder of pictures and captions as samples; whatever is dropped, converted or not used is said. Torch-free."""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data import keys
from finetune.data.decode import EXTENSIONS, decode
from finetune.errors import ConfigError, DataError

PICTURE_LIKE = {".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".ico", ".tga", ".eps", ".raw", ".dng", ".cr2", ".nef"}


@dataclass(frozen=True)
class Sample:
    path: Path
    name: str  # relative to the folder, with forward slashes
    content: str  # sha256 of the file
    captions: tuple[str, ...]  # one is drawn each time
    weight: float = 1.0

    @property
    def caption(self) -> str:
        """The one that stands for all of them where nothing is drawn, as in measuring."""
        return self.captions[0]


@dataclass
class Found:
    """A folder's samples in the order of their names, and what a person should know about it."""

    samples: list[Sample]
    dropped: dict[str, str] = field(default_factory=dict)  # file -> why
    notes: Counter[str] = field(default_factory=Counter)  # what was converted -> how many

    def describe(self, say: Callable[[str], None]) -> None:
        for note, count in sorted(self.notes.items()):
            say(f"  {count} {note}")
        for name, why in list(self.dropped.items())[:20]:
            say(f"  dropped {name}: {why}")
        if len(self.dropped) > 20:
            say(f"  dropped {len(self.dropped) - 20} more")


@dataclass
class Pictures:
    """The sides of the data: to train on, the class pictures beside them, and held out; in this order in `all`."""

    found: Found
    train: list[Sample]
    held: list[Sample]
    classes: list[Sample] = field(default_factory=list)

    @property
    def all(self) -> list[Sample]:
        return [*self.train, *self.classes, *self.held]

    def fingerprint(self) -> str:
        """A hash of every picture's bytes, caption and weight, whatever the files are called and wherever they lie."""
        sides = [sorted((s.content, s.captions, s.weight) for s in side) for side in (self.train, self.classes, self.held)]
        return hashlib.sha256(json.dumps(sides).encode()).hexdigest()

    def describe(self, say: Callable[[str], None]) -> None:
        """What was found, converted and dropped; nothing is silent."""
        say(f"pictures: {len(self.train)} to train on" + (f", {len(self.held)} held out" if self.held else ""))
        self.found.describe(say)


@dataclass(frozen=True)
class Wording:
    """How captions are made: one for all, or the pictures' own with `trigger` in front of those that lack it and all of `tokens`.

    A picture without a caption is said with each of `templates`, in which `{}` is the trigger.
    """

    caption: str | None = None
    trigger: str | None = None
    templates: tuple[str, ...] = ("{}",)
    tokens: tuple[str, ...] = ()

    def captions(self, own: str | None) -> tuple[str, ...]:
        """Of a picture whose own caption is `own`; none where there is nothing to say."""
        if not self.trigger:
            return (own,) if own else ()
        if own:
            said = any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", own) for word in (self.trigger, *self.tokens))
            return (own if said else f"{self.trigger}, {own}",)
        return tuple(t.replace("{}", self.trigger) for t in self.templates)


def load(folder: Path, wording: Wording, background: str, holdout: str | None) -> Pictures:
    """`scan` and `split` in one."""
    found = scan(folder, wording, background)
    return Pictures(found, *split(found, holdout, wording, background))


def scan(folder: Path, wording: Wording, background: str, only: Sequence[Path] | None = None) -> Found:
    """Reads every picture and caption once, so that what is wrong is known before a model is loaded.

    `only` are pictures of the folder to read, whatever a metadata file lists.
    Captions: the wording's if it has one, else `metadata.jsonl` or `.csv` (file_name, text), else `name.txt` beside the picture.

    Raises:
        DataError: no such folder, no pictures, a damaged picture, a caption that is not UTF-8 or missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", "--data takes a folder of pictures")
    found = Found([])
    listed = _metadata(folder) if only is None else None
    chosen = list(only or (paths(folder, found) if listed is None else _listed(folder, listed, found)))
    if not chosen:
        others = f" (not usable: {', '.join(list(found.dropped)[:5])})" if found.dropped else ""
        raise DataError(f"{folder}: no pictures{others}", f"pictures end in {', '.join(sorted(EXTENSIONS))}")
    captions = {p: wording.captions(_caption(p, p.relative_to(folder).as_posix(), wording.caption, listed, found)) for p in chosen}
    if missing := [p.relative_to(folder).as_posix() for p, c in captions.items() if not c]:
        raise DataError(
            f"{folder}: {len(missing)} of {len(chosen)} pictures have no caption: {_some(missing)}",
            "put the caption in a .txt file of the same name, or give --caption or --trigger for all",
        )
    with ThreadPoolExecutor() as pool:
        for path, (content, notes) in zip(chosen, pool.map(lambda p: _check(p, background), chosen), strict=True):
            found.samples.append(Sample(path, path.relative_to(folder).as_posix(), content, captions[path]))
            found.notes.update(notes)
    return found


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _inside(folder: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def paths(folder: Path, found: Found) -> list[Path]:
    """The pictures of a folder by name; what is left out is noted in `found`."""
    chosen = []
    runs = [p.parent for p in folder.rglob("run.yaml")]  # with --data . the next run would train on the samples of the last
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        try:
            if path.is_dir() or any(part.startswith(".") for part in path.relative_to(folder).parts):
                continue
        except OSError as e:
            raise DataError(f"{path}: cannot be read ({e.strerror})", "give a folder of pictures that you may read") from e
        if any(path.is_relative_to(r) for r in runs):
            found.notes["file not used, as it lies in the folder of a run"] += 1
            continue
        if not _inside(folder, path):
            found.dropped[name] = "a link that leaves the folder"
        elif path.suffix.lower() in EXTENSIONS:
            chosen.append(path)
        elif path.suffix.lower() in PICTURE_LIKE:
            found.dropped[name] = f"{path.suffix.lower()} is not read; convert it to PNG"
    return chosen


def _listed(folder: Path, listed: dict[str, str], found: Found) -> Iterable[Path]:
    for path in paths(folder, found):
        name = path.relative_to(folder).as_posix()
        if name in listed:
            yield path
        else:
            found.dropped[name] = "not in the metadata file"
    for name in listed.keys() - {p.relative_to(folder).as_posix() for p in paths(folder, Found([]))}:
        found.dropped.setdefault(name, "listed in the metadata file, but not a picture that is read")


def _metadata(folder: Path) -> dict[str, str] | None:
    """file_name -> text of `metadata.jsonl` or `metadata.csv`, or None where there is neither."""
    for name in ("metadata.jsonl", "metadata.csv"):
        path = folder / name
        if not path.exists():
            continue
        text = _utf8(path)
        rows = list(csv.DictReader(io.StringIO(text))) if name.endswith("csv") else _json_lines(path, text)
        listed = {}
        for number, row in enumerate(rows, 2 if name.endswith("csv") else 1):
            file, caption = row.get("file_name"), row.get("text")
            if not isinstance(file, str) or not isinstance(caption, str):
                raise DataError(f"{path}, line {number}: expected file_name and text, found {', '.join(map(str, row)) or 'nothing'}")
            if not _inside(folder, folder / file):
                raise DataError(f"{path}, line {number}: {file} leaves the folder")
            if not (folder / file).is_file():
                raise DataError(f"{path}, line {number}: no such file: {file}")
            listed[Path(file).as_posix()] = caption
        return listed
    return None


def _json_lines(path: Path, text: str) -> list[dict[str, object]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise DataError(f"{path}, line {number}: not JSON ({e})") from e
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected an object with file_name and text")
        rows.append(row)
    return rows


def _utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 (byte {e.start})", "save the file as UTF-8") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e


def _caption(path: Path, name: str, one: str | None, listed: dict[str, str] | None, found: Found) -> str | None:
    sidecar = path.with_suffix(".txt")
    if one is not None:
        if sidecar.exists():
            found.notes["caption file not used, as --caption is for all"] += 1
        return one
    if listed is not None:
        return listed[name]
    return " ".join(_utf8(sidecar).split()) if sidecar.exists() else None


def _check(path: Path, background: str) -> tuple[str, tuple[str, ...]]:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e
    return hashlib.sha256(data).hexdigest(), decode(data, str(path), background).notes


def split(found: Found, holdout: str | None, wording: Wording, background: str) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out samples. A picture's side depends on its bytes alone: it stays when others come and go.

    Raises:
        ConfigError: nothing would be left on one side.
    """
    if holdout is None:
        return found.samples, []
    try:
        fraction = float(holdout)
    except ValueError:
        other = scan(Path(holdout).expanduser(), wording, background)
        known = {s.content for s in other.samples}
        found.dropped |= {f"{holdout}/{name}": why for name, why in other.dropped.items()}
        found.notes.update(other.notes)
        train = [s for s in found.samples if s.content not in known]
        if len(train) < len(found.samples):
            found.dropped |= {s.name: "also in the --holdout folder" for s in found.samples if s.content in known}
        return _both(train, other.samples, holdout)
    rank = {s.content: keys.uniform("holdout", s.content) for s in found.samples}
    # Few pictures may all fall on one side: then the likeliest is held out.
    held = [s for s in found.samples if rank[s.content] < max(fraction, min(rank.values()) + 1e-12)]
    return _both([s for s in found.samples if s not in held], held, holdout)


def _both(train: list[Sample], held: list[Sample], holdout: str) -> tuple[list[Sample], list[Sample]]:
    if not train or not held:
        side = "training" if not train else "measuring"
        raise ConfigError(f"--holdout {holdout}: leaves no picture for {side}", "choose another fraction, or give a folder")
    return train, held
