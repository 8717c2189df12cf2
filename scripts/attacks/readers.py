"""What is fuzzed: for each kind of input the sound ones to begin with, and how one is laid down and read."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import bases, folders, scenes, seeds
from .seeds import SHAPES, small

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".heic")


@dataclass(frozen=True)
class Kind:
    """`seeds` makes sound inputs; `read` lays one down in a folder that is its own, and reads it as a command would."""

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path, bytes], object]
    suffixes: tuple[str, ...] = ()  # of files that fit


def read_picture(folder: Path, data: bytes) -> int:
    """The fair size: eight times the pixels that its header says."""
    from finetune.data import decode

    head = decode.picture_header(data, "a.png")
    decode.decode_picture(data, "a.png")
    return 8 * head.width * head.height


def scanned(place: Path, **columns: str) -> None:
    """All that is said of a place of pictures before a run, and the pictures' bytes."""
    from finetune.data import scan
    from finetune.data.captions import Wording
    from finetune.data.inputs import BESIDE
    from finetune.errors import DataError

    wording = Wording(trigger="sks", shuffle=True, drop=0.1, wildcards=True, variants=2)
    found = scan.scan(scan.Origin(str(place), wording, beside=frozenset(BESIDE)))
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


def read_recipe(folder: Path, data: bytes) -> None:
    from finetune import config
    from finetune.config.precedence import read_yaml

    path = folder / "a.yaml"
    path.write_bytes(data)
    read_yaml(path)
    job = config.resolve({"data": {"path": "."}}, path)
    config.dump(job)


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


def read_embedding(folder: Path, data: bytes) -> None:
    from finetune.adapters import embedding

    path = folder / "a.safetensors"
    path.write_bytes(data)
    embedding.read(path)


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
    _ = found.contract, found.readings


def _entries() -> dict[str, Any]:
    out, at = {}, 0
    for name, shape in SHAPES.items():
        size = 4 * (shape[0] * shape[1] if shape else 1)
        out[name], at = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}, at + size
    return out


def kinds(place: scenes.Place) -> dict[str, Kind]:
    """All of them, by name."""
    every = [
        Kind("pictures", seeds.picture_seeds, read_picture, PICTURES),
        Kind("captions", lambda: seeds.TEXTS, partial(beside_picture, "a.txt"), (".txt", ".caption")),
        Kind("metadata csv", lambda: seeds.CSV, partial(beside_picture, "metadata.csv"), (".csv",)),
        Kind("metadata jsonl", lambda: seeds.LINES, partial(beside_picture, "metadata.jsonl"), (".jsonl",)),
        Kind("metadata parquet", seeds.table_seeds, partial(beside_picture, "metadata.parquet")),
        Kind("parquet", seeds.parquet_seeds, partial(alone, "a.parquet"), (".parquet",)),
        Kind("tar", seeds.tar_seeds, partial(alone, "a.tar"), (".tar",)),
        Kind("saved datasets", partial(folders.saved_seeds, place), partial(folders.read_saved, place)),
        Kind("recipes", seeds.recipe_seeds, read_recipe, (".yaml", ".yml")),
        Kind("adapters", partial(seeds.adapter_seeds, place), read_adapter, (".safetensors",)),
        Kind("embeddings", partial(seeds.embedding_seeds, place), read_embedding, (".safetensors",)),
        Kind("contracts", partial(seeds.contract_seeds, place), read_contract),
        Kind("run folders", partial(folders.run_seeds, place), partial(folders.read_run, place)),
        Kind("base configs", partial(bases.base_seeds, place), partial(bases.read_base, place)),
        Kind("single-file bases", partial(bases.single_seeds, place), partial(bases.read_single, place)),
        Kind("pickled bases", bases.pickle_seeds, bases.read_pickle, (".ckpt", ".bin", ".pt", ".pth")),
        Kind("peft folders", partial(folders.peft_seeds, place), partial(folders.read_peft, place)),
    ]
    return {kind.name: kind for kind in every}
