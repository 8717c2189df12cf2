"""One decoder for every picture: orientation, depth, colour profile, transparency, then a square crop."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageCms, ImageColor, ImageOps

from finetune.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

# The file's bytes decide, not its name; EPS and other formats that run programs are not among them.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "MPO")
EXTENSIONS = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif"}
MOST_PIXELS = 89_478_485  # Pillow warns above it
VERSION = 2  # part of every cache key: raise it when the same file would decode to other pixels


@dataclass(frozen=True)
class Decoded:
    image: Image.Image  # RGB
    notes: tuple[str, ...]  # what was converted


def decode(data: bytes, name: str, background: str = "white") -> Decoded:
    """The picture as sRGB, upright, 8 bits a channel, on `background` where it was transparent.

    Raises:
        DataError: not one of FORMATS, damaged, or too many pixels to be a picture.
    """
    notes: list[str] = []
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError
        if getattr(image, "n_frames", 1) > 1:
            notes.append("animated: first frame")
        image.load()
        image = _upright(image, notes)
        image = _eight_bits(image, notes)
        image = _srgb(image, notes)
        image = _opaque(image, background, notes)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise DataError(f"{name}: more pixels than a picture should have", "scale it down") from e
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, RuntimeError and more on damaged files
        raise DataError(f"{name}: not a readable picture ({e})", "repair or remove the file") from e
    if min(image.size) < 8:
        raise DataError(f"{name}: {image.width}x{image.height} pixels is too small", "remove the file")
    return Decoded(image, tuple(notes))


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.getexif().get(0x0112, 1) == 1:
        return image
    notes.append("rotated as its EXIF says")
    return ImageOps.exif_transpose(image)


def _eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image
    import numpy as np

    # Pillow's own conversion clips 16-bit grey at 255, which turns a picture white.
    values = np.asarray(image, dtype=np.float64)
    top = 1.0 if values.max() <= 1 and image.mode == "F" else 65535.0 if values.max() > 255 or image.mode.startswith("I") else 255.0
    notes.append(f"{image.mode} rescaled to 8 bits")
    return Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8), "L")


def _srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in (ImageCms.getProfileDescription(source) or "").lower():
            return image
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        plain = image.convert("RGB") if image.mode == "RGBA" else image
        converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:
        notes.append("unreadable ICC profile ignored")
        return image
    notes.append("ICC profile converted to sRGB")
    if converted is None:
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _opaque(image: Image.Image, background: str, notes: list[str]) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() != (255, 255):
        notes.append(f"transparent: composited on {background}")
    colour = (*ImageColor.getrgb(background)[:3], 255)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, colour), rgba).convert("RGB")


class Crop(NamedTuple):
    """Where a training picture was cut, in the order in which Stable Diffusion XL is told (heights before widths); in pixels."""

    original_height: int
    original_width: int
    top: int  # of the resized picture
    left: int
    height: int
    width: int


def square(image: Image.Image, side: int) -> Image.Image:
    """Resized to cover a square of `side` pixels, then centre-cropped."""
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS, centering=(0.5, 0.5))


def square_crop(image: Image.Image, side: int) -> Crop:
    """What `square` cuts."""
    w, h = image.size
    scale = side / min(w, h)
    return Crop(h, w, round((h * scale - side) / 2), round((w * scale - side) / 2), side, side)


def to_tensor(image: Image.Image) -> "Tensor":
    """[3, H, W] fp32 in [-1, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1.0)


def load(path: Path, content: str, background: str, side: int) -> tuple["Tensor", Crop]:
    """One training picture, [3, side, side] in [-1, 1], and its crop.

    Raises:
        DataError: its bytes no longer have the sha256 `content`.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != content:
        raise DataError(f"{path}: changed while the run was starting", "run the command again")
    image = decode(data, path.name, background).image
    return to_tensor(square(image, side)), square_crop(image, side)
