"""Words on sheets: every script that the machine has letters for, spelt out else; and pictures that keep their proportions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from finetune import cli
from finetune.data import lettering
from finetune.data.lettering import Face
from finetune.sampling import draw

Fonts = Callable[..., None]


@dataclass(frozen=True)
class Some(Face):
    """A font that has some characters alone."""

    letters: str = ""

    def has(self, character: str) -> bool:
        return character in self.letters


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fonts]:
    """Sets what the machine has besides Pillow's own font."""

    def chosen(*some: Face) -> None:
        monkeypatch.setattr(lettering, "faces", lambda: some)
        lettering._face.cache_clear()

    yield chosen
    lettering._face.cache_clear()


def some(letters: str, emoji: bool = False) -> Face:
    return Some(lettering._own().font, 1.0, emoji, letters)


def said(text: str) -> list[str]:
    return [piece.text for piece in lettering.font_runs(text)]


def test_each_piece_is_in_a_font_that_has_it(fonts: Fonts) -> None:
    chinese, emoji = some("狐狸雪"), some("🦊雪1", emoji=True)
    fonts(emoji, chinese)
    made = lettering.font_runs("a 狐狸 1 雪🦊 b")
    assert [p.text for p in made] == ["a ", "狐狸 ", "1 ", "雪", "🦊", " b"]
    assert [p.face for p in made] == [lettering._own(), chinese, lettering._own(), chinese, emoji, lettering._own()]
    assert lettering.note(["a 狐狸", "b"]) is None


def test_what_no_font_has_is_spelt_and_said(fonts: Fonts) -> None:
    fonts()
    assert said("狐 ё नमस्ते") == [r"\u72d0 \u0451 \u0928\u092e\u0938\u094d\u0924\u0947"]
    assert said("a 🦊, 👩🏽\u200d🚀❤\ufe0f 🇩🇪") == [r"a (fox face), (woman)(rocket)\u2764 DE"]
    assert said("e\u0301") == [r"\xe9"], "composed first"
    assert said("a\nb\tc") == ["a b c"]
    assert said("\x1b[2J\udcff\ue000") == [r"?[2J\udcff\ue000"]
    note = lettering.note(["a 狐狸 狐", "🦊"])
    assert note and "no font here has 狐狸🦊: " in note and lettering.note(["abc"]) is None


def test_accents_joiners_and_colours_stay_with_their_letter(fonts: Fonts) -> None:
    emoji, letters = some("👩🚀", emoji=True), some("नमसत\u094d\u0947")
    fonts(emoji, letters)
    assert said("👩🏽\u200d🚀") == ["👩🏽\u200d🚀"] and said("नमस्ते") == ["नमस्ते"]


def test_what_runs_from_the_right_is_laid_from_the_right(fonts: Fonts, monkeypatch: pytest.MonkeyPatch) -> None:
    fonts(some("ثعلب في"))
    monkeypatch.setattr(lettering, "_shapes", lambda: True)
    assert said("ثعلب at night") == ["at night", "ثعلب "]
    lettering._face.cache_clear()
    monkeypatch.setattr(lettering, "_shapes", lambda: False)  # a row of single letters in the wrong order says nothing
    assert said("في") == [r"\u0641\u064a"]


def test_no_font_of_this_machine_draws_a_box_for_what_it_lacks() -> None:
    """Whatever is installed: a character is in a font's own table, or spelt."""
    private = "\U0010fffd"
    assert not any(face.has(private) or face.has("\U000e0fff") for face in (lettering._own(), *lettering.faces()))
    assert lettering._own().has("a") and not lettering._own().has("狐")
    for face in (f for f in lettering.faces() if "dejavusans.ttf" in str(f.font.path).lower()):
        assert face.has("ж") and face.has("ع") and not face.has("狐") and not face.has("\u094d")


def test_lines_end_at_words_else_anywhere_and_say_that_they_were_cut() -> None:
    text = "one two three four five six seven"
    lines = lettering.wrap(text, 60, 9)
    assert " ".join(lines) == text and all(lettering.length(line) <= 60 for line in lines) and len(lines) > 3
    cut = lettering.wrap(text, 60, 2)
    assert cut[0] == lines[0] and cut[1].endswith("...") and lettering.length(cut[1]) <= 60 and len(cut) == 2
    long = lettering.wrap("x" * 50, 60, 99)
    assert "".join(long) == "x" * 50 and all(lettering.length(line) <= 60 for line in long)
    assert lettering.wrap("", 60, 2) == lettering.wrap(" \n ", 60, 2) == [] and lettering.wrap("a\nb", 60, 2) == ["a b"]
    assert lettering.wrap("wide", 1, 9) == ["w", "i", "d", "e"]


def test_pictures_of_a_sheet_keep_their_proportions() -> None:
    images = [Image.new("RGB", size, colour) for size, colour in (((32, 32), "red"), ((64, 32), "lime"), ((16, 64), "blue"))]
    page = np.asarray(draw.sheet([("", images)], side=128))
    assert page.shape == (128 + draw.GAP, 3 * (128 + draw.GAP), 3)
    for colour, size in (((255, 0, 0), (128, 128)), ((0, 255, 0), (128, 64)), ((0, 0, 255), (32, 128))):
        y, x = np.nonzero((page == colour).all(-1))
        assert (int(np.ptp(x)) + 1, int(np.ptp(y)) + 1) == size
    upright = draw.sheet([("", [Image.new("RGB", (512, 768))] * 2)])
    assert upright.size == (2 * (512 + draw.GAP), 768 + draw.GAP), "no room is left where no picture needs it"


def test_labels_have_their_ink(fonts: Fonts) -> None:
    """A row for each prompt, however long: its words stand left of its own pictures, and none runs into them."""
    fonts()
    images = [Image.new("RGB", (64, 64), "red")]
    page = np.asarray(draw.sheet([("a", images), ("狐狸" * 200, images), ("word\n" * 200, images)], ["шаг " * 30]))
    left = page.shape[1] - 128 - draw.GAP
    for row in range(3):
        top = draw.HEAD + row * (128 + draw.GAP)
        assert (page[top : top + 128, :left] < 128).any() and (page[top : top + 128, left : left + 128] == (255, 0, 0)).all()
    assert (page[: draw.HEAD, left:] < 128).any()


def test_a_bitmap_font_is_brought_to_our_size(fonts: Fonts) -> None:
    large = lettering._own().font.font_variant(size=120)
    fonts(Some(large, lettering.SIZE / 120, True, "🦊"))
    page = Image.new("RGB", (40, 20), "white")
    lettering.write_line(page, (2, 2), "🦊")
    y, x = np.nonzero(np.asarray(page.convert("L")) < 128)
    assert 0 < np.ptp(x) < 14 and 0 < np.ptp(y) < 14 and lettering.length("🦊") < 14


def test_grid_and_preview_say_what_was_asked(base: Path, fonts: Fonts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fonts()
    words = ["--base", str(base), "--steps", "1", "--out", str(tmp_path / "out"), "--grid"]
    assert cli.run(["generate", "狐狸", *words]) == 0 and "note: no font here has 狐狸: " in capsys.readouterr().err
    tiny.folder(tmp_path / "imgs", 2)
    (tmp_path / "imgs" / "00.txt").write_text("лиса 🦊 " * 20, encoding="utf-8")
    assert cli.run(["data", "preview", str(tmp_path / "imgs"), "--base", str(base), "--out", str(tmp_path / "sheet.png")]) == 0
