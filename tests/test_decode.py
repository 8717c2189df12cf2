"""Pictures as files: what is decoded how, and what is cut of them."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image, ImageCms, ImageFile

from finetune.data import crop, decode, scan
from finetune.data.captions import Wording
from finetune.data.encoded import Pixels
from finetune.data.sample import Size
from finetune.data.scan import Origin
from finetune.errors import DataError


def png(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def decoded(data: bytes, background: str = "white") -> tuple[np.ndarray, tuple[str, ...]]:
    made = decode.decode_picture(data, "x", background)
    assert made.image.mode == "RGB"
    return np.asarray(made.image), made.notes


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (40, 20)).save(out, "JPEG", exif=exif)
    pixels, notes = decoded(out.getvalue())
    assert pixels.shape == (40, 20, 3) and "EXIF" in notes[0]


def test_sixteen_bits_are_rescaled_not_clipped() -> None:
    data = png(Image.fromarray(np.full((16, 16), 30000, dtype=np.uint16)))
    pixels, notes = decoded(data)
    assert abs(int(pixels.mean()) - round(30000 / 65535 * 255)) <= 1 and "8 bits" in notes[0]


def test_transparency_shows_the_background_not_the_hidden_colour() -> None:
    data = png(Image.new("RGBA", (16, 16), (255, 0, 0, 0)))
    assert decoded(data)[0].min() == 255
    assert tuple(decoded(data, "#0000ff")[0][0, 0]) == (0, 0, 255)
    half = png(Image.new("RGBA", (16, 16), (0, 0, 0, 128)))
    assert abs(int(decoded(half)[0].mean()) - 127) <= 1


def test_another_colour_space_becomes_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert not decoded(png(tiny.picture(0), icc_profile=lab))[1]
    for mode in ("L", "LA", "P", "1", "CMYK", "F"):
        if mode in ("CMYK", "F"):
            out = io.BytesIO()
            tiny.picture(0).convert(mode).save(out, "TIFF")
            assert decoded(out.getvalue())[0].shape == (20, 24, 3)
        else:
            assert decoded(png(tiny.picture(0).convert(mode)))[0].shape == (20, 24, 3)


def test_square_covers_and_keeps_the_centre() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste((0, 0, 255), (100, 0, 200, 100))
    assert np.asarray(crop.square(wide, 50))[:, 6:-6].reshape(-1, 3).tolist() == [[0, 0, 255]] * (50 * 38)
    assert crop.to_tensor(Image.new("RGB", (8, 8), "white")).unique().tolist() == [1.0]


def test_heic_is_read_where_its_package_is_installed() -> None:
    import pillow_heif

    out = io.BytesIO()
    pillow_heif.from_pillow(tiny.picture(0).resize((64, 48))).save(out, quality=100)
    header = decode.picture_header(out.getvalue(), "x.heic")
    assert header[:2] == (64, 48) and decoded(out.getvalue())[0].shape == (48, 64, 3)


def test_a_header_says_what_decoding_converts() -> None:
    import bad_pictures

    for data, note in bad_pictures.CONVERTED.values():
        seen, made = decode.picture_header(data, "x"), decode.decode_picture(data, "x")
        assert seen.notes and tuple(n.replace("{background}", "white") for n in seen.notes) == made.notes and made.notes[0] == note
        assert (seen.width, seen.height) == made.image.size and seen.alpha == (made.alpha is not None)


def test_a_picture_that_was_cut_short_is_found_without_decoding_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import bad_pictures

    loads: list[str] = []
    real = ImageFile.ImageFile.load

    def load(self: ImageFile.ImageFile) -> Any:
        loads.append(str(self.format))
        return real(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    for kind in ("JPEG", "PNG", "WEBP"):
        data = bad_pictures.saved(bad_pictures.photo(0), kind)
        decode.picture_header(data, "x")
        decode.picture_header(data + b"\0" * 3 if kind == "JPEG" else data, "x")
        assert not loads
        with pytest.raises(DataError, match=r"x: not a (readable )?picture"):
            decode.picture_header(data[: len(data) // 2], "x")
        loads.clear()


def test_what_a_header_says_of_transparency_is_what_decoding_does() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    keyed = Image.new("RGB", (16, 16), (255, 0, 0))
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    for image, options in (
        (keyed, {"transparency": (255, 0, 0)}),
        (palette, {"transparency": 0}),
        (keyed, {"transparency": (255, 0, 0), "icc_profile": profile}),
    ):
        data = png(image, **options)
        made = decode.decode_picture(data, "x")
        assert decode.picture_header(data, "x").alpha and made.alpha is not None and made.alpha.getextrema() == (0, 0)
        assert np.asarray(made.image).min() == 255, "the hidden red is not seen"


def test_whole_numbers_of_32_bits_are_scaled_by_what_they_hold() -> None:
    for most, seen in ((200, 200), (40_000, 156), (1_000_000, 255)):
        out = io.BytesIO()
        Image.fromarray(np.full((16, 16), most, dtype=np.int32)).save(out, "TIFF")
        assert abs(int(decoded(out.getvalue())[0].max()) - seen) <= 1


def test_a_size_that_the_header_did_not_tell_is_refused(tmp_path: Path) -> None:
    """As of a turned PNG whose orientation only a decoder finds: its bucket would have other proportions."""
    path = tmp_path / "turned.png"
    Image.new("RGB", (48, 32)).save(path)
    found = scan.scan(Origin(str(tmp_path), Wording(caption="a"))).samples[0]
    assert Pixels().prepared(replace(found, size=Size(32, 32))).image.size == (32, 32)
    wrong = replace(found, original=Size(48, 32), size=Size(32, 32))
    with pytest.raises(DataError, match=r"turned\.png: is 48x32 when decoded, and its header says 32x48"):
        Pixels().prepared(wrong)


@pytest.mark.parametrize("junk", [b"junk", b"\0" * 200, b"acsp" * 40])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_profile_that_cannot_be_read_is_left_aside(junk: bytes, kind: str) -> None:
    buffer = io.BytesIO()
    tiny.picture(0).save(buffer, kind, icc_profile=junk)
    assert decode.picture_header(buffer.getvalue(), "x").notes == ("unreadable ICC profile ignored",)
    made = decode.decode_picture(buffer.getvalue(), "x")
    assert made.notes == ("unreadable ICC profile ignored",) and made.image.size == (24, 20)


PEAK = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from finetune.data import decode
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: decode.decode_picture(data, "x").notes, range(4)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB there")
@pytest.mark.parametrize("mode", ["RGBA", pytest.param("LA", marks=pytest.mark.slow), pytest.param("I;16", marks=pytest.mark.slow)])
def test_four_large_pictures_are_decoded_within_bounds(mode: str, tmp_path: Path) -> None:
    side = 8000
    image = Image.fromarray(np.zeros((side, side), np.uint16)) if mode == "I;16" else Image.new(mode, (side, side))
    image.save(tmp_path / "a.png", compress_level=1)
    del image
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "a.png")], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 2**30 + side * side * 4
