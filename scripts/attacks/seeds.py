"""Sound inputs of each kind, which the fuzz begins with."""

import io
import json
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .scenes import Place

PLAIN = "red disc, blue square"
TEXTS = [PLAIN.encode(), "a {red|blue} disc, 😀, (word:1.3)\n".encode(), b"\xef\xbb\xbfa\r\nb"]
CSV = [b'file_name,text\na.png,"red, disc"\nb.png,x\n', b"file_name;caption\na.png;x\n"]
LINES = [b'{"file_name": "a.png", "text": "red disc"}\n{"file_name": "b.png", "text": ["x", "y"]}\n']


def picture(side: int = 16, mode: str = "RGB", fmt: str = "PNG", **options: Any) -> bytes:
    """A random picture, encoded."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(side).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    image.save(out, fmt, **options)
    return out.getvalue()


def picture_seeds() -> list[bytes]:
    from PIL import Image, ImageCms

    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    told: list[dict[str, Any]] = [{"mode": mode} for mode in ("RGB", "RGBA", "P", "I;16", "L", "1")]
    told += [{"icc_profile": profile}, {"fmt": "JPEG", "exif": exif, "progressive": True}, {"fmt": "WEBP", "lossless": True}]
    told += [{"fmt": fmt} for fmt in ("JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")]
    told += [{"fmt": "JPEG", "mode": "CMYK"}, {"fmt": "TIFF", "mode": "CMYK"}, {"fmt": "TIFF", "compression": "tiff_lzw"}]
    return [picture(**options) for options in told]


small = cache(picture)


def parquet(columns: Mapping[str, list[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def parquet_seeds() -> list[bytes]:
    two = [{"bytes": small(), "path": "a.png"}, {"bytes": small(), "path": None}]
    return [parquet({"image": two, "text": [PLAIN, "x"]}), parquet({"image": [small()], "caption": [[PLAIN, "y"]]})]


def table_seeds() -> list[bytes]:
    return [parquet({"file_name": ["a.png", "b.png"], "text": [PLAIN, "x"]})]


def tar(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_seeds() -> list[bytes]:
    members = {"0.png": small(), "0.txt": PLAIN.encode(), "1.png": small(), "1.json": json.dumps({"text": PLAIN}).encode()}
    return [tar(members), tar({"sub/x.png": small(), "sub/x.caption": b"a"})]


def packed(folder: Path) -> list[bytes]:
    """An input for each file of a folder: the file's number, then its bytes."""
    return [
        bytes([i]) + p.read_bytes() for i, p in enumerate(p for p in sorted(folder.rglob("*")) if p.is_file()) if p.stat().st_size < 2**17
    ]


SHORT_RECIPES = (
    "optim: {steps: 1, betas: [0.9, 0.99]}\ndata: {path: x, sources: [{path: y}]}\n",
    "optim: {steps: !!int 3, lr: !!float 1e-4}\nrun: {name: !!str x, seed: 2001-01-01}\n",
    "run: &a {sample_prompt: [x, y]}\noptim: {lr: 1e-4}\ndata: &b {path: x}\nsubject: *b\n",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\n",
    "optim: &a {lr: *a}\n",
    "? [a, b]\n: !!set {c}\nd: |\n  e\nf: >\n  g\n",
)


def recipe_seeds() -> list[bytes]:
    root = Path(__file__).parents[2] / "recipes"
    return [p.read_bytes() for p in sorted(root.glob("*.yaml"))[:8]] + [text.encode() for text in SHORT_RECIPES]


def tensors(metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    import torch

    from finetune import tensor_files

    return tensor_files.safetensors({name: torch.ones(shape) for name, shape in shapes.items()}, metadata)


LAYER = "lora_unet_mid_block_attentions_0_proj_in"
SHAPES = {f"{LAYER}.lora_down.weight": (2, 8), f"{LAYER}.lora_up.weight": (8, 2), f"{LAYER}.alpha": ()}


def adapter_seeds(place: Place) -> list[bytes]:
    return [
        tensors({"ss_network_dim": "2"}, SHAPES),
        (place.root / "made" / "lora.safetensors").read_bytes(),
        tensors({}, {"unet.down.0.lora_A.weight": (2, 8)}),
    ]


def embedding_seeds(place: Place) -> list[bytes]:
    return [
        tensors({}, {"clip_l": (2, 16), "clip_g": (2, 24)}),
        tensors({}, {"emb_params": (1, 16)}),
        (place.root / "words" / "token.safetensors").read_bytes(),
    ]


def contract_seeds(place: Place) -> list[bytes]:
    from finetune.adapters.contract import KEY
    from finetune.header import header_of

    return [header_of(place.root / "made" / "lora.safetensors").metadata[KEY].encode()]
