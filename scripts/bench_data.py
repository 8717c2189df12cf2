"""How fast pictures are scanned and batches drawn, and what a picture costs in memory: python scripts/bench_data.py --out DIR

Makes a folder of JPEG photos with captions (1,500 MB for 10,000), scans it with an empty index and again, fills a cache with latents of
the embedded base's shape for all of them, and draws batches from it beside real training steps, in turn. Prints JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune import config
from finetune.data import scan
from finetune.data.buckets import Buckets
from finetune.data.cache import Cache
from finetune.data.captions import Wording
from finetune.data.encoded import Encoded, Pixels
from finetune.data.index_plan import IndexPlan
from finetune.data.sample import Sample
from finetune.data.scan import Origin
from finetune.draws import StepDraws
from finetune.training.loop import gradient, update
from finetune.training.run import begun

PICTURES = Path("tests/fluent")
KINDS = 100  # different photos; the others differ in a comment alone, which makes them other files


def memory() -> int:
    """Bytes that are this process's own; what is mapped from files can be given back at any time, and is not counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("needs Linux, where /proc/self/status tells what memory is a process's own")


def photos(folder: Path, count: int) -> None:
    """Photos of 768x512 pixels and about 150 kB, captioned with eight tags."""
    if (folder / f"{count - 1:05d}.txt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for kind in range(KINDS):
        rng = np.random.default_rng(kind)
        coarse = Image.fromarray(rng.integers(0, 200, (9, 6, 3), dtype=np.uint8)).resize((768, 512), Image.Resampling.BICUBIC)
        grain = rng.integers(0, 40, (512, 768, 3), dtype=np.uint8)
        path = folder / "photo"
        Image.fromarray(np.asarray(coarse) + grain).save(path, "JPEG", quality=85)
        data = path.read_bytes()
        path.unlink()
        for i in range(kind, count, KINDS):
            note = str(i).encode().rjust(8)
            (folder / f"{i:05d}.jpg").write_bytes(data[:2] + b"\xff\xfe\x00\x0a" + note + data[2:])
            (folder / f"{i:05d}.txt").write_text(", ".join(f"tag{(i * k) % 97}" for k in range(1, 9)))


def timed(origin: Origin) -> float:
    start = time.perf_counter()
    scan.scan(origin).refuse()
    return round(time.perf_counter() - start, 2)


def samples(photos: Path) -> list[Sample]:
    """All of a folder, in the buckets of the embedded base."""
    return Buckets((64,), 8, 32, 128).assign(scan.scan(Origin(str(photos), Wording())).samples)


def filled(photos: Path, root: Path) -> Encoded:
    """Latents of the embedded base's shape for all photos of a folder, in shards."""
    pixels, store, made = Pixels(), Cache(root), samples(photos)
    for s in made:
        if (name := pixels.key(s, 0)) not in store:
            shape = (4, s.size.height // 8, s.size.width // 8)
            crop = torch.tensor([*s.original, 0, 0, *s.size])
            store.put(name, {"x_0.mean": torch.randn(shape), "x_0.deviation": torch.rand(shape), "crop": crop})
    store.flush()
    return Encoded(made, store, pixels)


def memory_growth(photos: Path, objects: bool) -> int:
    """Bytes by which a process grows that knows all photos of a folder and has drawn each; called in a process of its own.

    The memory of the process also holds what the scan needed meanwhile and the allocator keeps for later; `objects` counts what is alive.
    """
    out = photos.parent
    drawn(filled(PICTURES, out / "few"), 6)  # what is loaded once
    if objects:
        tracemalloc.start()
    before = memory()
    kept = Encoded(samples(photos), Cache(out / "latents"))
    drawn(kept, len(kept.samples) // 4)
    return tracemalloc.get_traced_memory()[0] if objects else memory() - before


def tenth(photos: Path) -> Path:
    """The first of a folder's photos, in a folder of their own."""
    names = sorted(photos.iterdir())[: len(list(photos.iterdir())) // 20 * 2]  # each with its caption
    part = photos.parent / f"photos-{len(names) // 2}"
    part.mkdir(exist_ok=True)
    for path in names:
        (part / path.name).unlink(missing_ok=True)
        os.link(path, part / path.name)
    return part


def bytes_a_picture(photos: Path, count: int, kind: str) -> int:
    """By how much a process grows with each picture beyond a tenth of them."""
    words = [sys.executable, __file__, "--out", str(photos.parent), "--memory", kind, "--photos"]
    few, all_of_them = (
        int(subprocess.run([*words, str(p)], capture_output=True, text=True, check=True).stdout) for p in (tenth(photos), photos)
    )
    return round((all_of_them - few) / (count - count // 10))


def drawn(encoded: Encoded, steps: int) -> None:
    """So many batches of 4."""
    plan = IndexPlan(encoded.samples, 4, 0)
    for step in range(steps):
        batches(encoded, plan, step)


def batches(encoded: Encoded, plan: IndexPlan, step: int) -> None:
    """A step's batches, as the training loop asks for them."""
    encoded.batches(plan.slots(step), lambda slots: StepDraws(0, step, slots, plan.batch), 0.1)


def training_steps(out: Path, many: Encoded, steps: int) -> dict[str, float]:
    """Steps of `ft lora` on the embedded base and batches of the photos, in turn."""
    runner = begun(config.parse({"model": {"base": "tiny"}, "data": {"path": str(PICTURES)}, "run": {"out": str(out / "run")}}))
    training = runner.training
    plan, step_times, load_times = IndexPlan(many.samples, 4, 0), [], []
    for step in range(steps):
        start = time.perf_counter()
        batches(many, plan, step)
        middle = time.perf_counter()
        gradient(training, step)
        update(training, step)
        load_times.append(middle - start)
        step_times.append(time.perf_counter() - middle)
    return {
        "milliseconds_a_step": round(1000 * statistics.median(step_times), 1),
        "milliseconds_a_batch": round(1000 * statistics.median(load_times), 2),
        "times_faster_than_training": round(statistics.median(a / b for a, b in zip(step_times, load_times, strict=True))),
    }


def main(out: Path, count: int, steps: int) -> dict[str, Any]:
    photos(out / "photos", count)
    origin, size = Origin(str(out / "photos"), Wording()), sum(p.stat().st_size for p in (out / "photos").glob("*.jpg"))
    os.environ["FT_CACHE"] = str(out / "cache")
    (out / "cache" / "index.sqlite").unlink(missing_ok=True)
    scan.scan(Origin(str(PICTURES), Wording()))  # imports and code, once
    made: dict[str, Any] = {"pictures": count, "megabytes": round(size / 1e6), "threads": torch.get_num_threads()}
    made |= {"scan_seconds": timed(origin), "rescan_seconds": timed(origin)}
    filled(out / "photos", out / "latents")
    scan.scan(Origin(str(tenth(out / "photos")), Wording()))  # into the index
    for kind in ("objects", "process"):
        made[f"bytes_a_picture_{kind}"] = bytes_a_picture(out / "photos", count, kind)
    return made | training_steps(out, Encoded(samples(out / "photos"), Cache(out / "latents")), steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--memory", choices=("objects", "process"), help="only what the photos of --photos cost in memory, in bytes")
    parser.add_argument("--photos", type=Path)
    given = parser.parse_args()
    if given.memory:
        print(memory_growth(given.photos, given.memory == "objects"))
    else:
        print(json.dumps(main(given.out, given.pictures, given.steps), indent=2))
