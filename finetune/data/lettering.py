"""Words on pictures, in any script: each character in a font of this machine that has it, and spelt out where none has.

Pillow's own font has ASCII and little else, and no font has everything: a text is drawn piece by piece, in as many fonts as it takes.
"""

import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

from finetune.errors import plain

SIZE, LINE = 12, 15  # pixels, of the letters and from line to line
MOST_FONTS, MOST_LETTERS = 200, 400  # that are opened; that of one text are drawn
STRIKES = (109, 136, 160, 128, 96, 64, 32)  # sizes in which fonts of coloured bitmaps exist, and in no others
SYMBOLS = "\U0001f000"  # from here on, Unicode has pictures
NOBODYS = "\U0010ffff"  # which stands for no character: what a font draws for it, it draws for all that it lacks
# Fonts of many scripts first, as their files are called on Linux, macOS and Windows.
PREFERRED = (
    "dejavusans.", "notosans-regular", "notosanscjk", "arial unicode", "msyh", "pingfang", "hiragino sans gb", "yugoth", "meiryo", "malgun",
    "applesdgothic", "notocoloremoji", "apple color emoji", "seguiemj", "segoeui", "seguisym", "nirmala", "tahoma", "wqy",
    "droidsansfallback", "notosans", "symbola", "unifont", "arial",
)  # fmt: skip
STYLED = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "condensed", "serif")
BLANK = ("blank", "lastresort")  # fonts that have a sign for every character, and say nothing with it


@dataclass(frozen=True)
class Face:
    font: ImageFont.FreeTypeFont
    scale: float = 1.0  # from the font's pixels to ours
    emoji: bool = False

    def has(self, character: str) -> bool:
        size, ink = _drawn(self, character)
        return any(ink) and (size, ink) != _drawn(self, NOBODYS)


class Piece(NamedTuple):
    face: Face
    text: str

    @property
    def length(self) -> float:
        return self.face.font.getlength(self.text) * self.face.scale


@cache
def _drawn(face: Face, character: str) -> tuple[tuple[int, int], bytes]:
    """What the font has for the character alone, before accents are set on anything."""
    mask = _unshaped(face).getmask(character)
    return mask.size, bytes(mask)


@cache
def _unshaped(face: Face) -> ImageFont.FreeTypeFont:
    return face.font.font_variant(layout_engine=ImageFont.Layout.BASIC)


@cache
def _own() -> Face:
    """Pillow's own font, which is everywhere."""
    font = ImageFont.load_default(SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)  # noqa: S101  all wheels of Pillow have FreeType
    return Face(font)


def _places() -> Iterator[Path]:
    """Folders where fonts are installed."""
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"
        yield Path(os.environ.get("LOCALAPPDATA", Path.home())) / "Microsoft" / "Windows" / "Fonts"
    elif sys.platform == "darwin":
        yield from (root / "Library" / "Fonts" for root in (Path.home(), Path("/"), Path("/System")))
    else:
        yield Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "fonts"
        yield Path.home() / ".fonts"
        yield from (Path(root) / "fonts" for root in (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":"))
    if (matplotlib := importlib.util.find_spec("matplotlib")) and matplotlib.origin:  # which brings DejaVu along
        yield Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"


def _rank(path: Path) -> tuple[int, int, str]:
    name = path.name.lower()
    known = next((i for i, begin in enumerate(PREFERRED) if name.startswith(begin)), len(PREFERRED))
    return known, sum(word in name for word in STYLED), name


def _is_font(name: str) -> bool:
    return Path(name).suffix.lower() in (".ttf", ".otf", ".ttc") and not any(word in name.lower() for word in BLANK)


@cache
def faces() -> tuple[Face, ...]:
    """The machine's fonts in the order in which they are asked for a character."""
    paths: list[Path] = []
    for place in _places():
        for folder, _, names in os.walk(place):
            paths += [Path(folder, name) for name in names if _is_font(name)]
    opened = map(_opened, sorted(paths, key=_rank)[:MOST_FONTS])
    return tuple(face for face in opened if face)


def _opened(path: Path) -> Face | None:
    for size in (SIZE, *STRIKES):
        try:
            return Face(ImageFont.truetype(str(path), size), SIZE / size, "emoji" in path.name.lower())
        except (OSError, ValueError):  # no font, or one of bitmaps of other sizes
            continue
    return None


@cache
def _face(character: str) -> Face | None:
    """A font that has the character; one of coloured pictures for what is a picture, and for nothing else if another has it."""
    if character.isspace():
        return _own()
    if unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs") or (_turned(character) and not _shapes()):
        return None
    if _own().has(character):
        return _own()
    asked = sorted(faces(), key=lambda face: face.emoji != (character >= SYMBOLS))
    return next((face for face in asked if face.has(character)), None)


def _turned(character: str) -> bool:
    return unicodedata.bidirectional(character) in ("R", "AL")


@cache
def _shapes() -> bool:
    """Whether letters that run from the right and join can be set; without, they would be a row of wrong ones."""
    return bool(features.check("raqm") and features.check("fribidi"))


def _spelt(character: str) -> str:
    """For what no font has: a picture's name, and a letter as Python and JSON write it."""
    if "\U0001f1e6" <= character <= "\U0001f1ff":  # of which two are a flag
        return chr(ord("A") + ord(character) - 0x1F1E6)
    if character >= SYMBOLS and (name := unicodedata.name(character, "")):
        return f"({name.lower()})"
    return character.encode("ascii", "backslashreplace").decode()


def _clings(character: str) -> bool:
    """Whether it changes the character before it, and is none alone: accents, selectors, joiners, tones of skin."""
    return unicodedata.category(character) in ("Mn", "Me", "Cf") or "\U0001f3fb" <= character <= "\U0001f3ff"


def font_runs(text: str) -> list[Piece]:
    """The text from left to right, as far as `MOST_LETTERS`, each piece with the font that has it."""
    out: list[Piece] = []
    for character in _flat(text):
        last = out[-1].face if out else None
        face = last if last and _stays(last, character) else _face(character)
        if face is None and _is_manner(character):
            continue
        face, letters = (face, character) if face else (_own(), _spelt(character))
        if face is last:
            out[-1] = Piece(face, out[-1].text + letters)
        else:
            out.append(Piece(face, letters))
    first = next((c for c in text if c.isalpha()), "")
    return out[::-1] if first and _turned(first) else out


def _flat(text: str) -> str:
    """As one line of single characters where there are any, and not for ever."""
    return unicodedata.normalize("NFC", "".join(" " if c.isspace() else c for c in plain(text[:MOST_LETTERS])))


def _stays(last: Face, character: str) -> bool:
    """Whether a character belongs to the piece before it: what clings to a letter, and spaces, but for pictures' wide ones."""
    if character.isspace():
        return not last.emoji
    return _clings(character) and (last.emoji or last.has(character))


def _is_manner(character: str) -> bool:
    """Whether it says nothing but how others are drawn: joiners, selectors, tones of skin."""
    return _clings(character) and (unicodedata.category(character) != "Mn" or "\ufe00" <= character <= "\ufe0f")


def length(text: str) -> float:
    """In pixels."""
    return sum(piece.length for piece in font_runs(text))


def missing(texts: Iterable[str]) -> str:
    """The characters that no font of this machine has, each once."""
    return "".join(c for c in dict.fromkeys("".join(map(_flat, texts))) if not _clings(c) and _face(c) is None)


def note(texts: Iterable[str]) -> str | None:
    """What to say of a sheet whose words are not all in letters."""
    lost = missing(texts)
    more = f" and {len(lost) - 20} more" if len(lost) > 20 else ""
    return f"note: no font here has {lost[:20]}{more}: the sheet spells them; a font such as Noto draws them" if lost else None


def wrap(text: str, width: float, most: int) -> list[str]:
    """At most so many lines of at most `width` pixels; what is left out is shown by three dots."""
    lines: list[str] = []
    rest = " ".join(text.split())[:MOST_LETTERS]
    while rest and len(lines) < most:
        end = _end(rest, width)
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    if rest and lines:
        last = lines[-1]
        while last and length(f"{last}...") > width:
            last = last[:-1]
        lines[-1] = f"{last}..."
    return lines


def _end(text: str, width: float) -> int:
    """Where a line ends: behind a word where one fits, else behind a letter."""
    end = next((n - 1 for n in range(2, len(text) + 1) if length(text[:n]) > width), len(text))
    if end == len(text) or text[end] == " ":
        return end
    if space := text.rfind(" ", 0, end):
        end = space if space > 0 else end
    while end > 1 and (_clings(text[end]) or text[end - 1] == "\u200d"):
        end -= 1
    return end


def write_line(page: Image.Image, place: tuple[float, float], text: str, fill: str = "black") -> None:
    """One line, its left upper corner at `place`."""
    x, y = place[0], place[1] + SIZE  # of the baseline, which all fonts share
    pen = ImageDraw.Draw(page)
    for piece in font_runs(text):
        if piece.face.scale == 1:
            pen.text((x, y), piece.text, fill=fill, font=piece.face.font, anchor="ls", embedded_color=True)
        else:
            _paste(page, (round(x), round(y)), piece, fill)
        x += piece.length


def _paste(page: Image.Image, place: tuple[int, int], piece: Piece, fill: str) -> None:
    """A piece whose font has another size, made ours."""
    left, top, right, bottom = (round(n) for n in piece.face.font.getbbox(piece.text, anchor="ls"))
    tile = Image.new("RGBA", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(tile).text((-left, -top), piece.text, fill=fill, font=piece.face.font, anchor="ls", embedded_color=True)
    scale = piece.face.scale
    small = tile.resize((max(1, round(tile.width * scale)), max(1, round(tile.height * scale))), Image.Resampling.LANCZOS)
    page.paste(small, (place[0] + round(left * scale), place[1] + round(top * scale)), small)
