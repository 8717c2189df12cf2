"""Pictures with everything that is wrong in real folders, made in code."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter


def photo(seed: int, width: int = 96, height: int = 96) -> Image.Image:
    """Coarse shapes with fine noise: sharp, and unlike any other seed's."""
    rng = np.random.default_rng(seed)
    shapes = Image.fromarray(rng.integers(0, 200, (6, 6, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(np.asarray(shapes) + rng.integers(0, 56, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 30000 pixels wide and high."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def cut_out() -> Image.Image:
    """A disc of grey noise on nothing, below which red is hidden."""
    made = photo(3).convert("L").convert("RGBA")
    y, x = np.mgrid[:96, :96]
    inside = (y - 48) ** 2 + (x - 48) ** 2 < 40**2
    pixels = np.array(made)
    pixels[~inside] = (255, 0, 0, 0)
    return Image.fromarray(pixels)


def sideways() -> bytes:
    """A portrait as a phone writes it: landscape pixels, and EXIF that says how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(photo(1, 128, 96), "JPEG", exif=exif, quality=95)


GOOD = {
    "plain.png": saved(photo(0), "PNG"),
    "names with spaces.png": saved(photo(10), "PNG"),
    'it\'s "quoted".png': saved(photo(11), "PNG"),
    "owl 🦉.png": saved(photo(12), "PNG"),
    "two\nlines.png": saved(photo(13), "PNG"),
    "modern.avif": saved(photo(14), "AVIF", quality=90),
    "sub/nested.jpg": saved(photo(15), "JPEG", quality=95),
}
CONVERTED = {  # read, and said what of them was converted
    "sideways.jpg": (sideways(), "rotated as its EXIF says"),
    "deep.png": (saved(Image.fromarray(np.asarray(photo(2).convert("L"), dtype=np.uint16) * 257), "PNG"), "I;16 rescaled to 8 bits"),
    "cut-out.png": (saved(cut_out(), "PNG"), "with transparency: composited on white"),
    "print.jpg": (saved(photo(4).convert("CMYK"), "JPEG", quality=95), "CMYK converted to sRGB"),
}
DOUBTFUL = {  # read, with a warning
    "moving.webp": (saved(photo(5), "WEBP", save_all=True, append_images=[photo(6)], lossless=True), "animated: first frame"),
    "small.png": (saved(photo(7, 20, 20), "PNG"), "small: 20x20 pixels, enlarged 3.2 times to 64x64"),
    "long.png": (saved(photo(8, 640, 64), "PNG"), "loses 60% of its area when cut from 640x64 to 128x32"),
    "blurred.png": (saved(photo(9).filter(ImageFilter.GaussianBlur(12)), "PNG"), "blurred or blank"),
    "plainer.png": (GOOD["plain.png"], "the same picture as plain.png"),
    "plainest.jpg": (saved(photo(0), "JPEG", quality=80), "nearly the same picture as plain.png"),
}
BROKEN = {  # refused
    "short.jpg": (saved(photo(16), "JPEG", quality=95)[:2000], "not a readable picture"),
    "empty.png": (b"", "an empty file"),
    "bomb.png": (bomb(), "more pixels than a picture should have"),
    "text.png": (b"a text file\n" * 100, "not a picture of a format that is read"),
}


def folder(path: Path) -> Path:
    """All of the above, each with a caption of its own."""
    path.mkdir(parents=True, exist_ok=True)
    parts = {name: data for part in (CONVERTED, DOUBTFUL, BROKEN) for name, (data, _) in part.items()}
    for i, (name, data) in enumerate((GOOD | parts).items()):
        target = path / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
        target.with_suffix(".txt").write_text(f"thing number {i}", encoding="utf-8")
    return path
