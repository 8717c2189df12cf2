"""One decoder for every picture: orientation, depth, colour profile, transparency; and a look at a file's header alone. Torch-free."""

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from finetune.errors import DataError
from finetune.text import from_json

# The file's bytes decide, not its name; EPS and other formats that run programs are not among them.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")  # MPO, of phones, is opened as JPEG
EXTENSIONS = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif"}
MOST_PIXELS = 89_478_485  # Pillow warns above it
PIXEL = 14  # bytes that decoding takes for each, at most
ROOM = 2**30  # bytes that all threads decode in, but for a single picture that takes more
STRIP = 2**20  # numbers that are rescaled at once
ORIENTATION = 0x0112  # EXIF
HEADER_VERSION = 2  # of what `header` tells: raise it when it tells more
SOFTWARE = "finetune"  # what a picture that was drawn here says of itself
VERSION = 3  # part of every cache key: raise it when the same file would decode to other pixels


Mask = Image.Image  # L: white is what counts
# Larger than what the system's allocator keeps of the memory of pictures that are gone.
Image.core.set_block_size(2**26)  # type: ignore[attr-defined]
_waiting, _taken = threading.Condition(), 0


def content(data: bytes) -> str:
    """What a picture is known by, whatever its file is called: the sha256 of its bytes."""
    return hashlib.sha256(data).hexdigest()


class PictureHeader(NamedTuple):
    """What a file says of its picture before it is decoded."""

    width: int  # upright
    height: int
    notes: tuple[str, ...]  # what decoding will convert
    alpha: bool
    drawn: bool  # by this program, as the file itself says


@dataclass(frozen=True)
class Decoded:
    image: Image.Image  # RGB
    notes: tuple[str, ...]  # what was converted
    alpha: Mask | None  # how opaque it was, before it was composited


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever Pillow raises, as an error with the file's name."""
    try:
        yield
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise DataError(f"{name}: more pixels than a picture should have", "scale it down") from e
    except UnidentifiedImageError as e:
        raise DataError(f"{name}: not a picture of a format that is read", "remove the file, or convert it to PNG") from e
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, RuntimeError and more on damaged files
        raise DataError(f"{name}: not a readable picture ({e})", "repair or remove the file") from e


def _open(data: bytes, name: str) -> Image.Image:
    if not data:
        raise DataError(f"{name}: an empty file", "remove it")
    image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
    if image.width * image.height > MOST_PIXELS:
        raise Image.DecompressionBombError
    if min(image.size) < 8:
        raise DataError(f"{name}: {image.width}x{image.height} pixels is too small", "remove the file")
    return image


@cache
def _formats() -> tuple[str, ...]:
    """FORMATS, and HEIC where its package is installed."""
    Image.init()  # which opening does too, but not safely in several threads at once
    try:
        import pillow_heif
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def picture_header(data: bytes, name: str) -> PictureHeader:
    """Reads no pixels, but for a file whose end looks wrong, which is decoded to be sure. The notes say {background} for its colour.

    Raises:
        DataError: as `decode_picture`.
    """
    with _named(name):
        image = _open(data, name)
        if not _whole(data, image):
            with _room(image.size):
                image.load()
        turned = _orientation(image, data)
        width, height = image.size if turned < 5 else image.size[::-1]
        return PictureHeader(width, height, tuple(_notes(image, turned, "{background}")), _transparent(image), _drawn(image))


def _drawn(image: Image.Image) -> bool:
    """Whether `finetune.sampling.draw` wrote it; an older picture says so by its parameters alone."""
    if image.info.get("Software") == SOFTWARE:
        return True
    try:
        parameters = from_json(image.info.get("parameters", ""))
    except (ValueError, TypeError):
        return False
    return isinstance(parameters, dict) and (not parameters or {"prompt", "seed", "base", "scheduler"} <= parameters.keys())


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF's; Pillow decodes a whole PNG to look for it behind the pixels, so only one that can have it is asked."""
    if image.format == "PNG" and not any(word in data for word in (b"eXIf", b"Raw profile type", b"tiff:Orientation")):
        return 1
    return int(image.getexif().get(ORIENTATION, 1))


def _whole(data: bytes, image: Image.Image) -> bool:
    """Whether the file has the end that its format asks for; a picture that was cut short decodes to grey."""
    if image.format in ("JPEG", "MPO"):
        return data[-64:].rstrip(b"\0")[-2:] == b"\xff\xd9"
    if image.format == "PNG":
        return data[-12:] == b"\0\0\0\0IEND\xaeB`\x82"
    if image.format == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 <= len(data)
    return False


def decode_picture(data: bytes, name: str, background: str = "white") -> Decoded:
    """The picture as sRGB, upright, 8 bits a channel, on `background` where it was transparent.

    Raises:
        DataError: not one of FORMATS, damaged, or too many pixels to be a picture.
    """
    with _named(name):
        image = _open(data, name)
        notes = _notes(image, _orientation(image, data), background)
        with _room(image.size):
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            image = _srgb(_eight_bits(_direct(image)))
            if image.has_transparency_data and image.mode != "RGBA":
                image = image.convert("RGBA")
            alpha = image.getchannel("A") if image.mode == "RGBA" else None
            return Decoded(_opaque(image, background), tuple(notes), alpha)


@contextmanager
def _room(pixels: tuple[int, int]) -> Iterator[None]:
    """Waits until a picture can be decoded beside those that other threads decode; a very large one is decoded alone."""
    global _taken
    size = min(pixels[0] * pixels[1] * PIXEL, ROOM)
    with _waiting:
        _waiting.wait_for(lambda: _taken + size <= ROOM)
        _taken += size
    try:
        yield
    finally:
        with _waiting:
            _taken -= size
            _waiting.notify_all()


def _transparent(image: Image.Image) -> bool:
    return image.has_transparency_data and not image.mode.startswith("I")  # 16 bits with one transparent grey: it stays grey


def _notes(image: Image.Image, turned: int, background: str) -> list[str]:
    """What decoding converts."""
    notes = []
    if image.format != "MPO" and getattr(image, "is_animated", False):  # a phone's JPEG may carry a second picture
        notes.append("animated: first frame")
    if turned != 1:
        notes.append("rotated as its EXIF says")
    if image.mode.startswith(("I", "F")):
        notes.append(f"{image.mode} rescaled to 8 bits")
    if (profile := _profile(image)) is not None:
        notes.append("ICC profile converted to sRGB" if profile else "unreadable ICC profile ignored")
    if image.mode == "CMYK" and not profile:
        notes.append("CMYK converted to sRGB")
    if _transparent(image):
        notes.append(f"with transparency: composited on {background}")
    return notes


def _direct(image: Image.Image) -> Image.Image:
    """Colours instead of a palette, and a channel instead of one colour that is transparent: what follows would lose both."""
    if image.mode in ("P", "PA") or ("transparency" in image.info and not image.mode.startswith("I")):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image
    import numpy as np

    # Pillow's own conversion clips 16-bit grey at 255, which turns a picture white.
    values = np.asarray(image)
    most = float(values.max())
    if image.mode == "F":
        top = next((full for full in (1.0, 255.0) if most <= full), 65535.0)
    else:  # "I" are whole numbers of 32 bits, of whatever range
        top = 65535.0 if image.mode != "I" or 255 < most <= 65535 else max(255.0, most)
    out, rows = np.empty(values.shape, np.uint8), max(1, STRIP // values.shape[1])
    for i in range(0, len(values), rows):
        out[i : i + rows] = np.clip(values[i : i + rows].astype(np.float64) / top * 255 + 0.5, 0, 255)
    return Image.fromarray(out, "L")


def _profile(image: Image.Image) -> "ImageCms.ImageCmsProfile | Literal[False] | None":
    """The colour profile to convert from; None where there is nothing to do, False where it cannot be read."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L", "P"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return None if "srgb" in (ImageCms.getProfileDescription(source) or "").lower() else source
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # Pillow raises them all for bytes that are no profile
        return False


def _srgb(image: Image.Image) -> Image.Image:
    source = _profile(image)
    if not source:
        return image
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    plain = image.convert("RGB") if image.mode == "RGBA" else image
    try:
        converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, ValueError):  # such as a profile for another number of channels
        return image
    if converted is not None and alpha is not None:
        converted.putalpha(alpha)
    return converted or image


def _opaque(image: Image.Image, background: str) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    colour = (*ImageColor.getrgb(background)[:3], 255)
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")
