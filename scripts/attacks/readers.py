"""What is fuzzed: for each kind of input the sound ones to begin with, and how one is laid down and read."""

import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from . import scenes

PLAIN = "red disc, blue square"


@dataclass(frozen=True)
class Kind:
    """`seeds` makes sound inputs; `read` lays one down in a folder that is its own, and reads it as a command would."""

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path, bytes], object]
    suffixes: tuple[str, ...] = ()  # of files that fit


def picture(side: int = 16, mode: str = "RGB", fmt: str = "PNG", **options: Any) -> bytes:
    """A random picture, encoded."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(side).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, fmt, **options)
    return out.getvalue()


def picture_seeds() -> list[bytes]:
    from PIL import Image, ImageCms

    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    told = [
        {}, {"mode": "RGBA"}, {"mode": "P"}, {"mode": "I;16"} | {"mode": "L"}, {"icc_profile": profile}, {"mode": "1"}, {"fmt": "JPEG"},
        {"fmt": "JPEG", "exif": exif, "progressive": True}, {"fmt": "JPEG", "mode": "CMYK"}, {"fmt": "WEBP"}, {"fmt": "WEBP", "lossless": True},
        {"fmt": "AVIF"}, {"fmt": "BMP"}, {"fmt": "TIFF"}, {"fmt": "TIFF", "compression": "tiff_lzw"}, {"fmt": "TIFF", "mode": "CMYK"}, {"fmt": "GIF"},
    ]  # fmt: skip
    return [picture(**options) for options in told]


def read_picture(folder: Path, data: bytes) -> int:
    """The fair size: eight times the pixels that its header says."""
    from finetune.data import decode

    head = decode.header(data, "a.png")
    decode.decode(data, "a.png")
    return 8 * head.width * head.height


def scanned(place: Path, **columns: str) -> None:
    """All that is said of a place of pictures before a run, and the pictures' bytes."""
    from finetune.data import scan
    from finetune.data.captions import Wording
    from finetune.errors import DataError

    wording = Wording(trigger="sks", shuffle=True, drop=0.1, wildcards=True, variants=2)
    found = scan.scan(scan.Origin(str(place), wording, mask="file"))
    for sample in found.samples[:20]:
        try:
            sample.read()
        except DataError:
            continue


def beside_picture(name: str, folder: Path, data: bytes) -> None:
    """The input as a file beside two pictures."""
    for one in ("a.png", "b.png"):
        (folder / one).write_bytes(small())
    (folder / name).write_bytes(data)
    scanned(folder)


def alone(name: str, folder: Path, data: bytes) -> None:
    (folder / name).write_bytes(data)
    scanned(folder / name)


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


def tar(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as file:  # type: ignore[call-overload]
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


def unpacked(of: Path, folder: Path, data: bytes) -> Path:
    """The folder with one of its files replaced by the input; the others are links where they are large."""
    made = folder / "it"
    names = [p.relative_to(of) for p in sorted(of.rglob("*")) if p.is_file()]
    for name in names:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        if (of / name).stat().st_size > 2**17:
            os.link(of / name, made / name)
        else:
            shutil.copyfile(of / name, made / name)
    if data:
        chosen = made / names[data[0] % len(names)]
        chosen.unlink()
        chosen.write_bytes(data[1:])
    return made


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


def read_recipe(folder: Path, data: bytes) -> None:
    from finetune import config
    from finetune.config.load import read_yaml

    path = folder / "a.yaml"
    path.write_bytes(data)
    read_yaml(path)
    job = config.resolve({"data": {"path": "."}}, path)
    config.dump(job)


def tensors(metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    import torch

    from finetune import files

    return files.safetensors({name: torch.ones(shape) for name, shape in shapes.items()}, metadata)


LAYER = "lora_unet_mid_block_attentions_0_proj_in"
SHAPES = {f"{LAYER}.lora_down.weight": (2, 8), f"{LAYER}.lora_up.weight": (8, 2), f"{LAYER}.alpha": ()}


def adapter_seeds(place: scenes.Place) -> list[bytes]:
    return [
        tensors({"ss_network_dim": "2"}, SHAPES),
        (place.root / "made" / "lora.safetensors").read_bytes(),
        tensors({}, {"unet.down.0.lora_A.weight": (2, 8)}),
    ]


def read_adapter(folder: Path, data: bytes) -> None:
    from finetune.adapters import inspect
    from finetune.adapters.read import read
    from finetune.errors import FinetuneError

    path = folder / "a.safetensors"
    path.write_bytes(data)
    try:
        inspect.inspect(path).text()
    except FinetuneError:
        pass
    read(path)


def embedding_seeds(place: scenes.Place) -> list[bytes]:
    return [
        tensors({}, {"clip_l": (2, 16), "clip_g": (2, 24)}),
        tensors({}, {"emb_params": (1, 16)}),
        (place.root / "words" / "token.safetensors").read_bytes(),
    ]


def read_embedding(folder: Path, data: bytes) -> None:
    from finetune.adapters import embedding

    path = folder / "a.safetensors"
    path.write_bytes(data)
    embedding.read(path)


def contract_seeds(place: scenes.Place) -> list[bytes]:
    from finetune.adapters.contract import KEY
    from finetune.adapters.header import header_of

    return [header_of(place.root / "made" / "lora.safetensors").metadata[KEY].encode()]


def read_contract(folder: Path, data: bytes) -> None:
    """As an adapter file says it: the header's text is valid, what it holds need not be."""
    from finetune.adapters import inspect
    from finetune.adapters.contract import KEY
    from finetune.adapters.read import read

    text = json.dumps({"__metadata__": {KEY: data.decode("utf-8", "replace")}} | _entries()).encode()
    path = folder / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * 33))
    inspect.inspect(path).text()
    found = read(path)
    _ = found.contract, found.traits


def _entries() -> dict[str, Any]:
    out, at = {}, 0
    for name, shape in SHAPES.items():
        size = 4 * (shape[0] * shape[1] if shape else 1)
        out[name], at = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}, at + size
    return out


def run_seeds(place: scenes.Place) -> list[bytes]:
    return packed(place.root / "made")


def read_run(place: scenes.Place, folder: Path, data: bytes) -> None:
    """What looks into a run's folder before it goes on, and what lists it."""
    from finetune.config.load import parse, read_yaml
    from finetune.errors import FinetuneError
    from finetune.training import checkpoint, clean, earlier, finished

    made = unpacked(place.root / "made", folder, data)
    clean.look(clean.runs(folder), whole=True)
    found = earlier.Earlier.of(made)
    _ = found.facts
    try:
        job = parse(read_yaml(made / "run.yaml"))
    except FinetuneError:
        return
    job = job.model_copy(update={"run": job.run.model_copy(update={"out": made})})
    finished.summary(job)
    try:
        found.refuse(job, {})
    finally:
        for one in checkpoint.valid(made / "checkpoints"):
            checkpoint.load(one)


def base_seeds(place: scenes.Place) -> list[bytes]:
    return packed(_base(place))


def read_base(place: scenes.Place, folder: Path, data: bytes) -> None:
    """As `--dry-run` does, which loads no weights, and then the tokenizer's words."""
    from finetune.config.load import parse
    from finetune.training import plan

    made = unpacked(_base(place), folder, data)
    plan.plan(
        parse(
            {"model": {"base": str(made)}, "data": {"path": str(place.root / "imgs"), "resolution": 32}, "optim": {"steps": 1, "batch": 2}}
        )
    )


def _base(place: scenes.Place) -> Path:
    return place.root / "base"


def saved_seeds(place: scenes.Place) -> list[bytes]:
    return packed(place.root / "saved")


def read_saved(place: scenes.Place, folder: Path, data: bytes) -> None:
    scanned(unpacked(place.root / "saved", folder, data))


def prepare(place: scenes.Place) -> None:
    """Folders that kinds take as sound: a run with a new token, a base, a saved dataset."""
    import datasets

    from finetune.families.source import resolve

    with scenes.quiet():
        place.run((*scenes.TOKEN[:-1], "--no-samples", "--out", "{root}/words"))
        if not (place.root / "base").exists():
            shutil.copytree(resolve("tiny").folder, place.root / "base")
        table = datasets.Dataset.from_dict({"image": [{"bytes": small(), "path": None}] * 2, "text": [PLAIN, "x"]})
        table.cast_column("image", datasets.Image()).save_to_disk(place.root / "saved")


def kinds(place: scenes.Place) -> dict[str, Kind]:
    """All of them, by name."""
    text = [PLAIN.encode(), "a {red|blue} disc, 😀, (word:1.3)\n".encode(), b"\xef\xbb\xbfa\r\nb"]
    table = [b'file_name,text\na.png,"red, disc"\nb.png,x\n', b"file_name;caption\na.png;x\n"]
    lines = [b'{"file_name": "a.png", "text": "red disc"}\n{"file_name": "b.png", "text": ["x", "y"]}\n']
    every = [
        Kind(
            "pictures", picture_seeds, read_picture, (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".heic")
        ),
        Kind("captions", lambda: text, partial(beside_picture, "a.txt"), (".txt", ".caption")),
        Kind("metadata csv", lambda: table, partial(beside_picture, "metadata.csv"), (".csv",)),
        Kind("metadata jsonl", lambda: lines, partial(beside_picture, "metadata.jsonl"), (".jsonl",)),
        Kind("metadata parquet", table_seeds, partial(beside_picture, "metadata.parquet")),
        Kind("parquet", parquet_seeds, partial(alone, "a.parquet"), (".parquet",)),
        Kind("tar", tar_seeds, partial(alone, "a.tar"), (".tar",)),
        Kind("saved datasets", partial(saved_seeds, place), partial(read_saved, place)),
        Kind("recipes", recipe_seeds, read_recipe, (".yaml", ".yml")),
        Kind("adapters", partial(adapter_seeds, place), read_adapter, (".safetensors",)),
        Kind("embeddings", partial(embedding_seeds, place), read_embedding, (".safetensors",)),
        Kind("contracts", partial(contract_seeds, place), read_contract),
        Kind("run folders", partial(run_seeds, place), partial(read_run, place)),
        Kind("base configs", partial(base_seeds, place), partial(read_base, place)),
    ]
    return {kind.name: kind for kind in every}
