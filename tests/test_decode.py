"""Pictures as files: what is decoded how, and what is cut of them."""

import io
from typing import Any

import numpy as np
import tiny
from PIL import Image, ImageCms

from finetune.data import crop, decode


def png(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def decoded(data: bytes, background: str = "white") -> tuple[np.ndarray, tuple[str, ...]]:
    made = decode.decode(data, "x", background)
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
