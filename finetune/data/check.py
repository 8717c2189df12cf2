"""What is wrong, doubtful or worth knowing about a run's pictures and captions; each is decoded once. Torch-free."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from finetune.data import decode
from finetune.data.buckets import kept, scale
from finetune.data.captions import tags
from finetune.data.index import Index
from finetune.data.sample import Listing, Pictures, Sample
from finetune.errors import DataError

VERSION = 1  # of a look: raise it when the same picture would be told otherwise
NEAR_BITS, NEAR_LEVELS = 6, 6.0  # two pictures are near duplicates within so many of 64 bits, and levels of 255 on average
BLURRED = 12.0  # variance of the Laplacian, on levels of 255, at most 512 pixels wide; sharp drawings and photos have hundreds
ENLARGED, CROPPED = 1.5, 0.3  # times, and share of the area, from which a picture is named

# Notes that are warnings, by their beginning.
DOUBTFUL = (
    "animated",
    "caption file without",
    "caption file not used, as there",
    "mask file not used, as there",
    "mask without",
    "metadata below",
    "no caption column",
    "shares its caption",
)

Level = Literal["error", "warning", "note"]


class Finding(NamedTuple):
    level: Level
    text: str
    names: tuple[str, ...]


class Look(NamedTuple):
    """What one picture's pixels say."""

    name: str
    hash: int  # 64 bits: whether brightness rises from each of 8x9 cells to the next
    small: tuple[int, ...]  # 8x8 grey levels
    sharpness: float


@dataclass
class Report:
    """Findings, and the numbers that stand beside them."""

    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, level: Level, text: str, names: Iterable[str]) -> None:
        if names := tuple(names):
            self.findings.append(Finding(level, text, names))

    def count(self, level: Level) -> int:
        return sum(len(f.names) for f in self.findings if f.level == level)

    def data(self) -> dict[str, Any]:
        """For `--json`."""
        kinds = {f"{level}s": [{"what": f.text, "files": list(f.names)} for f in self.findings if f.level == level] for level in LEVELS}
        return self.facts | kinds


LEVELS: tuple[Level, ...] = ("error", "warning", "note")


def check_data(listing: Listing, pictures: Pictures | None, trigger: str | None, tick: Callable[[], None]) -> Report:
    """`listing` is all that a scan found; `pictures` are the sides with their buckets, where there was nothing to refuse."""
    report = Report()
    for problem in listing.problems:
        report.add("error", problem.text, [problem.name])
    for name, why in listing.dropped.items():
        report.add("warning", f"not used: {why}", [name])
    for text, names in sorted(listing.notes.items()):
        report.add("warning" if text.startswith(DOUBTFUL) else "note", text, names)
    known = {s.name for s in listing.samples}
    samples = list(listing.samples)
    if pictures:
        samples += [s for s in pictures.held if s.name not in known]  # those of a --holdout folder
    looks = _looks(samples, report, tick)
    _duplicates(samples, looks, pictures, report)
    report.add("warning", "blurred or blank", [s.name for s in looks.values() if s.sharpness < BLURRED])
    _captions(listing.samples, trigger, report)
    if pictures:
        _sizes(pictures.train, report)
    report.findings = _merged(report.findings)
    return report


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for each level and text, errors first."""
    out: dict[tuple[Level, str], list[str]] = {}
    for level in LEVELS:
        for f in findings:
            if f.level == level:
                out.setdefault((level, f.text), []).extend(f.names)
    return [Finding(level, text, tuple(names)) for (level, text), names in out.items()]


def _looks(samples: Sequence[Sample], report: Report, tick: Callable[[], None]) -> dict[str, Look]:
    """What every different picture's pixels say, by content; one that cannot be decoded is an error."""
    index, unique = Index("looks", VERSION), dict[str, Sample]()
    for s in samples:
        unique.setdefault(s.content, s)  # each by its first name
    contents = list(unique)
    kept_rows: dict[str, Any] = {}
    for i in range(0, len(contents), 500):
        part = contents[i : i + 500]
        kept_rows |= dict(zip(part, index.get(part), strict=True))
    out, fresh_rows = {}, []

    def fresh(sample: Sample) -> "Look | DataError":
        try:
            return look_at(decode.decode_picture(sample.read(), sample.name).image, sample.name)
        except DataError as e:
            return e

    with ThreadPoolExecutor() as pool:
        new = [s for c, s in unique.items() if kept_rows[c] is None]
        for sample, result in zip(new, pool.map(fresh, new), strict=True):
            if isinstance(result, DataError):
                report.add("error", result.message.removeprefix(f"{sample.name}: "), [sample.name])
            else:
                out[sample.content] = result
                fresh_rows.append((sample.content, result[1:]))
            tick()
    for content, row in kept_rows.items():
        if row is not None:
            out[content] = Look(unique[content].name, row[0], tuple(row[1]), row[2])
            tick()
    index.put(fresh_rows)
    index.close(forget=False)
    return {content: out[content] for content in unique if content in out}


def look_at(image: Image.Image, name: str) -> Look:
    grey = image.convert("L")
    cells = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (cells[:, 1:] > cells[:, :-1]).flatten()
    small = np.asarray(grey.resize((8, 8), Image.Resampling.BOX)).flatten().tolist()
    if grey.width > 512:
        grey = grey.resize((512, max(1, round(grey.height * 512 / grey.width))), Image.Resampling.BOX)
    g = np.asarray(grey, dtype=np.float32)
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    sharpness = float(laplacian.var()) if laplacian.size else BLURRED  # a line of pixels is told by its proportions
    return Look(name, int("".join("1" if b else "0" for b in bits), 2), tuple(small), sharpness)


def _duplicates(samples: Sequence[Sample], looks: dict[str, Look], pictures: Pictures | None, report: Report) -> None:
    same: dict[str, list[str]] = {}
    for s in samples:
        same.setdefault(s.content, []).append(s.name)
    for names in same.values():
        report.add("warning", f"the same picture as {names[0]}", names[1:])
    contents = list(looks)
    if not contents:
        return
    hashes = np.array([looks[c].hash for c in contents], dtype=np.uint64)
    small = np.array([looks[c].small for c in contents], dtype=np.float32)
    held = {s.content for s in pictures.held} if pictures else set()
    for i, content in enumerate(contents):
        near = np.flatnonzero(np.bitwise_count(hashes[i + 1 :] ^ hashes[i]) <= NEAR_BITS) + i + 1
        for j in near[np.abs(small[near] - small[i]).mean(1) <= NEAR_LEVELS]:
            leak = ", and one of the two is held out" if (content in held) != (contents[j] in held) else ""
            report.add("warning", f"nearly the same picture as {looks[content].name}{leak}", [looks[contents[j]].name])


def _captions(samples: Sequence[Sample], trigger: str | None, report: Report) -> None:
    by_caption: dict[str, list[Sample]] = {}
    for s in samples:
        by_caption.setdefault(s.caption, []).append(s)
    for caption, alike in by_caption.items():
        if len(by_caption) > 1 and len({s.content for s in alike}) > 1:
            report.add("note", f"captioned alike: {caption[:60]!r}", [s.name for s in alike])
    report.facts["captions"] = len(by_caption)
    if trigger:
        report.facts["trigger"] = {"word": trigger, "captions": sum(trigger in s.caption for s in samples)}
    counts = Counter[str]()
    for s in samples:
        counts.update(tags(s.caption))
    report.facts["most_frequent_tags"] = {tag: n for tag, n in counts.most_common(10) if n > 1}


def _sizes(samples: Sequence[Sample], report: Report) -> None:
    for s in samples:
        by = scale(s.original, s.size)
        if by > ENLARGED:
            report.add("warning", f"small: {s.original} pixels, enlarged {by:.1f} times to {s.size}", [s.name])
        if (lost := 1 - kept(s)) > CROPPED:
            report.add("warning", f"loses {lost:.0%} of its area when cut from {s.original} to {s.size}", [s.name])
