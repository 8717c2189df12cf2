"""From the places that a run names to its samples: every picture's header and captions, what is wrong, and the sides. Torch-free."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from finetune import files, randomness
from finetune.data import archives, decode, folder, hub
from finetune.data.captions import Wording
from finetune.data.crop import same_proportions
from finetune.data.file import File
from finetune.data.folder import NO_CAPTION, file_stamp
from finetune.data.index import Index
from finetune.data.inputs import ALPHA, BESIDE, LOSS_MASK, PICTURE, Input
from finetune.data.sample import Item, Listing, Pictures, Problem, Sample, Size
from finetune.data.tables import USUAL, Columns
from finetune.errors import ConfigError, DataError
from finetune.text import AUTO, BRACES, WEIGHT, flaw

PART = 128  # items that are looked at together: few enough to be no burden, and enough for every thread
MANY = 100  # pictures, from which on a fraction of them is held out picture by picture
ENOUGH = 20  # pictures, from which on `auto` holds some out
AUTO_FRACTION = "0.1"  # of them
FEW = f"held out; of fewer than {MANY} pictures, which ones depends on the others: when some come or go, a picture may change sides"
WEIGHTS = "captioned with weights such as (word:1.3), which other tools read, and which are taken for words here"


@dataclass(frozen=True)
class Origin:
    """One place that pictures come from, and how they are taken."""

    place: str  # a folder, a .tar or .parquet file, or a dataset's id
    wording: Wording
    background: str = "white"
    alpha: bool = False  # whether what is opaque of a transparent picture is what counts
    beside: frozenset[str] = frozenset()  # what is read of the files that lie beside pictures, by the names of inputs
    columns: Columns = USUAL
    split: str | None = None
    each_line: bool = False
    repeats: int = 1
    weight: float | None = None  # of its draws among those of all sources
    drawn: bool = False  # whether pictures are taken that this program drew, as class pictures are
    skip: Callable[[str], bool] | None = None  # files of a folder that are as if they were not there


def items(origin: Origin, listing: Listing) -> Iterator[Item]:
    """What a place holds, whatever kind of place it is.

    Raises:
        DataError, AccessError: there is nothing that can be read.
    """
    check_place(origin.place)
    path = files.pictures(origin.place)
    if path.is_file():
        yield from _shard(path, path.name, listing, origin)
    elif not path.is_dir() or hub.saved(path):
        yield from hub.dataset_items(str(path) if path.is_dir() else origin.place, origin.split, listing, origin.columns)
    else:
        if origin.split or origin.columns.image:
            what = f"data.split {origin.split}" if origin.split else f"data.image_column {origin.columns.image}"
            raise ConfigError(f"{what}: {origin.place} is a folder of pictures, and no dataset or table", "leave it out")
        empty = True
        for item in folder.folder_items(path, listing, origin.each_line, origin.columns, origin.skip or (lambda name: False)):
            empty = False
            yield item
        for name in [name for name in folder.walk(path, Listing()) if folder.is_archive(name)] if empty else []:
            listing.dropped.pop(name)
            yield from _shard(path / name, name, listing, origin)


DEMO = "finetune/bases/demo"  # enough wherever the package is installed: see `files.pictures`


def check_place(place: str) -> None:
    """Raises:
    DataError: pictures cannot be there: it is no folder, no file, and cannot be a dataset's id.
    """
    path = files.pictures(place)
    if not (path.is_dir() or path.is_file() or _is_id(place)):
        raise DataError(f"{place}: no such folder or file", f"{hub.HINT}. To try it: --data {DEMO}")


def _is_id(place: str) -> bool:
    """Whether a name can be a Hub dataset's: `owner/name`, perhaps with a revision."""
    owner, slash, name = place.partition("/")
    return bool(slash and owner and name) and "/" not in name and not place.startswith((".", "~", os.sep)) and not owner.startswith(".")


def _shard(path: Path, label: str, listing: Listing, origin: Origin) -> Iterator[Item]:
    if path.suffix == ".parquet":
        return archives.parquet_items(path, label, listing, origin.columns)
    if path.suffix in (".tar", ".gz", ".tgz"):
        return archives.tar_items(path, label, listing, origin.columns, origin.each_line)
    raise DataError(f"{path}: neither a folder nor an archive", hub.HINT)


def scan(origin: Origin, given: Iterable[Item] | None = None) -> Listing:
    """Looks at every picture's header and caption, so that what is wrong is known before a model is loaded.

    No pixels are decoded, but for files whose end looks wrong. A picture that was seen before and has the same size and time is not
    read again. `given` are items of the place, where it is not to be searched for them.

    Raises:
        DataError, AccessError: there are no pictures at all; what is wrong with single ones is in the result's `problems`.
    """
    listing, count = Listing(), 0
    stream = items(origin, listing) if given is None else iter(given)
    index = Index(f"pictures of {os.path.abspath(origin.place)}", f"{decode.VERSION} {decode.HEADER_VERSION}")
    with ThreadPoolExecutor() as pool:
        while part := list(islice(stream, PART)):
            count += len(part)
            rows = [row if _is_row(row) else None for row in index.get([item.stamp for item in part])]
            looked = iter(pool.map(_look, [item for item, row in zip(part, rows, strict=True) if row is None]))
            fresh: list[tuple[str, list[Any]]] = []
            for item, known in zip(part, rows, strict=True):
                row = next(looked) if known is None else known
                if known is None and not isinstance(row, Problem):
                    fresh.append((item.stamp, row))
                _add(item, row, origin, listing)
            index.put(fresh)
    index.close(forget=given is None and origin.skip is None)
    if not listing.samples and not listing.problems:
        others = f" (not usable: {', '.join(list(listing.dropped)[:5])})" if listing.dropped else ""
        others = f" but {count} that this program drew" if count else others
        raise DataError(f"{origin.place}: no pictures{others}", f"pictures end in {', '.join(sorted(decode.EXTENSIONS))}")
    return listing


def _look(item: Item) -> "list[Any] | Problem":
    """Content, width, height, what will be converted, whether there is transparency, and whether this program drew it."""
    try:
        data = item.read()
        return [decode.content(data), *decode.picture_header(data, item.name)]
    except DataError as e:
        return Problem(item.name, e.message.removeprefix(f"{item.name}: "), e.hint)


def _is_row(row: object) -> bool:
    """Whether what was kept is such a row: whatever else stands there was not written here."""
    match row:
        case [str(), int(width), int(height), [*notes], bool(), bool()]:
            return width > 0 and height > 0 and all(isinstance(note, str) for note in notes)
    return False


def _add(item: Item, row: "list[Any] | Problem", origin: Origin, listing: Listing) -> None:
    """The sample that an item makes, or what is wrong with it."""
    if isinstance(row, Problem):
        listing.problems.append(row)
        return
    content, width, height, notes, alpha, drawn = row
    if drawn and not origin.drawn:
        listing.note("not used, as this program drew it", item.name)
        return
    captions = origin.wording.every(item, item.captions, content)
    if wrong := next(filter(None, map(flaw, captions)), None):
        listing.problems.append(Problem(item.name, f"its caption holds {wrong}", "correct the caption"))
        return
    if not captions:
        listing.problems.append(Problem(item.name, "empty caption file" if item.captions else "no caption", NO_CAPTION))
        return
    if origin.wording.caption is not None and item.captions:
        listing.note("caption file not used, as --caption is for all", item.name)
    _note_syntax(item, origin, captions, listing)
    for text in notes:
        listing.note(text.replace("{background}", origin.background), item.name)
    inputs = {PICTURE: Input(content, item.read)} | ({LOSS_MASK: Input(ALPHA)} if origin.alpha and alpha else {})
    for name, read in item.beside:
        kind = BESIDE[name]
        if name in origin.beside:
            inputs[name] = _mask(kind.noun, item, read, Size(height, width), listing)
        else:
            remedy = "of a class picture" if origin.drawn else f"--set {kind.setting} uses it"
            listing.note(f"{kind.noun} file not used; {remedy}", item.name)
    if origin.alpha or LOSS_MASK in origin.beside:
        listing.note("with a mask" if LOSS_MASK in inputs else "without a mask: all of it counts", item.name)
    original, times = _size(height, width), _times(origin.repeats * item.repeats)
    listing.samples.append(Sample(item.name, inputs, captions, original, times=times))


def _note_syntax(item: Item, origin: Origin, captions: Sequence[str], listing: Listing) -> None:
    """What other tools read in a caption, and what is taken for plain words here."""
    if any(map(WEIGHT.search, captions)):
        listing.note(WEIGHTS, item.name)
    if not origin.wording.wildcards and any("|" in braces for braces in chain.from_iterable(map(BRACES.findall, captions))):
        listing.note("captioned with {…|…}, which is taken as it stands; --set data.wildcards=true draws one of the words", item.name)


_size, _times = cache(Size), cache(Fraction)  # one object for all that are equal: there may be millions


def _mask(what: str, item: Item, read: Callable[[], bytes], picture: Size, listing: Listing) -> Input:
    """A mask that fits its picture; a problem if it does not."""
    name = f"the {what} of {item.name}"
    try:
        data = read()
        head = decode.picture_header(data, name)
    except DataError as e:
        listing.problems.append(Problem(item.name, e.message, e.hint))
        return Input("", read)
    if not same_proportions(Size(head.height, head.width), picture):
        here = f"its {what} is {head.width}x{head.height}, and the picture {picture}"
        listing.problems.append(Problem(item.name, here, "make it of the same proportions"))
    return Input(decode.content(data), read)


def load_pictures(origins: Sequence[Origin], holdout: str | None, held_as: Origin) -> Pictures:
    """The pictures of all places, their sides, and how often an epoch shows each. `held_as` says how a --holdout folder is read.

    Raises:
        DataError: a picture or caption is wrong, with all their names.
        ConfigError: nothing would be left on one side.
    """
    listing, parts = Listing(), []
    for origin in origins:
        part = scan(origin)
        prefix = f"{origin.place}/" if len(origins) > 1 else ""
        listing.add(part, prefix)
        parts.append(listing.samples[-len(part.samples) :] if part.samples else [])
    listing.refuse()
    chosen, held = split(listing, holdout, held_as)
    keep = {id(s) for s in chosen}
    train = weigh([[s for s in part if id(s) in keep] for part in parts], origins)
    return Pictures(listing, train, held)


def weigh(parts: list[list[Sample]], origins: Sequence[Origin]) -> list[Sample]:
    """Where sources have weights, an epoch shows their pictures so often that the draws of the sources stand in that proportion."""
    if all(o.weight is None for o in origins):
        return list(chain.from_iterable(parts))
    shares = []
    for origin, part in zip(origins, parts, strict=True):
        draws = sum(s.times for s in part) or 1
        shares.append(Fraction(str(origin.weight or 1)) / draws)
    least = min(share for share, part in zip(shares, parts, strict=True) if part)
    out = []
    for share, part in zip(shares, parts, strict=True):
        out += [replace(s, times=s.times * share / least) for s in part]
    return out


def split(listing: Listing, holdout: str | None, origin: Origin) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out samples. Of many pictures, a picture's side depends on its bytes alone: it stays when others come and go.

    Of fewer than `MANY`, whose hashes may all fall on one side, exactly the fraction is held out: those whose hashes come first.
    `origin` says how a folder of held-out pictures is read.

    Raises:
        ConfigError: nothing would be left on one side.
    """
    samples = listing.samples
    if holdout == AUTO:
        holdout = AUTO_FRACTION if len({s.content for s in samples}) >= ENOUGH else None
    if holdout is None:
        return samples, []
    try:
        fraction = float(holdout)
    except ValueError:
        other = Listing()
        other.add(scan(replace(origin, place=holdout)), f"{holdout}/")
        other.refuse()
        known = {s.content for s in other.samples}
        listing.add(replace(other, samples=[]))
        listing.dropped |= {s.name: "also in the --holdout folder" for s in samples if s.content in known}
        return _both([s for s in samples if s.content not in known], other.samples, holdout)
    rank = {s.content: randomness.uniform("holdout", s.content) for s in samples}
    if len(rank) >= MANY:
        apart = {content for content, place in rank.items() if place < fraction}
    else:
        apart = set(sorted(rank, key=rank.__getitem__)[: max(1, round(fraction * len(rank)))])
        listing.notes[FEW] = [s.name for s in samples if s.content in apart]
    return _both([s for s in samples if s.content not in apart], [s for s in samples if s.content in apart], holdout)


def _both(train: list[Sample], held: list[Sample], holdout: str) -> tuple[list[Sample], list[Sample]]:
    if not train or not held:
        side = "training" if not train else "measuring"
        raise ConfigError(f"--holdout {holdout}: leaves no picture for {side}", "choose another fraction, or give a folder")
    return train, held


def file_item(path: Path) -> Item:
    """A single picture file, without a caption."""
    return Item(path.name, File(str(path.parent), path.name), file_stamp(path.name, path.stat()))
