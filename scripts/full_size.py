"""A full-size base with random weights, trained through `ft lora`, exported, reloaded and drawn with: its step time and peak memory.

    python scripts/full_size.py sd15 --out /tmp/full --steps 50 --batch 4

Words that are not known here, such as --precision bf16, go to `ft lora`. Random weights learn nothing worth having; sizes, speed,
memory and files are the real ones. Prints one JSON object.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from PIL import Image

from finetune.families import load, single_file, source
from finetune.results import metrics
from finetune.run_folder import RunFolder


def write_base(name: str, folder: Path, dtype: torch.dtype) -> None:
    """The base's configs and tokenizers, and for every part random weights in `dtype`."""
    if (folder / "done").exists():
        return
    single_file.write_configs(single_file.shipped_configs(name), folder)
    family = load.family(source.resolve_base(str(folder), weights=False))
    for part in family.spec.parts:
        cls, config = family.parts.kinds[part][0], family.source.config(part)
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            net = cls.from_config(config) if hasattr(cls, "from_config") else cls(cls.config_class.from_dict(config))
        finally:
            torch.set_default_dtype(default)
        net.save_pretrained(folder / part, safe_serialization=True)
        del net
    (folder / "done").touch()


def write_pictures(folder: Path, side: int, count: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture number {i} of noise", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(p.stem for p in single_file.CONFIGS.glob("*.json")))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int)
    args, more = parser.parse_known_args()  # what is not known here goes to `ft lora`
    base, data, run = args.out / args.name, args.out / "pictures", args.out / f"run-{args.name}"
    began = time.monotonic()
    write_base(args.name, base, torch.bfloat16)
    family = load.family(source.resolve_base(str(base)))
    side = args.resolution or family.resolution
    write_pictures(data, side)
    made = time.monotonic() - began
    words = ["lora", "--base", base, "--data", data, "--out", run, "--fresh", "--rank", 16, "--steps", args.steps, "--batch", args.batch]
    words += ["--resolution", side, "--set", "run.log_every=1", "--set", "run.sample_every=1000000", "--json", *more]
    command = [sys.executable, "-m", "finetune", *map(str, words)]
    began = time.monotonic()
    summary = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    trained = time.monotonic() - began
    verify = [sys.executable, "-m", "finetune", "adapter", "verify", summary["adapter"], "--base", str(base), "--json"]
    verdict = json.loads(subprocess.run(verify, check=True, stdout=subprocess.PIPE, text=True).stdout)
    rows = metrics.read(RunFolder(run).metrics)
    # elapsed = steps / speed, both since the start; a step is the difference between two of them
    elapsed = [r.step / r.steps_per_second for r in rows if r.steps_per_second is not None]
    steps = [b - a for a, b in zip(elapsed[len(elapsed) // 5 :], elapsed[len(elapsed) // 5 + 1 :], strict=False)]
    print(json.dumps({
        "base": args.name, "resolution": side, "batch": args.batch, "steps": args.steps, "more": more,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", "torch": torch.__version__,
        "seconds": {
            "make the base": round(made, 1), "ft lora": round(trained, 1),
            "median step": round(statistics.median(steps), 4) if steps else None,
        },
        "peak memory of a process (GB)": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2),
        "peak memory of the accelerator (GB)": summary.get("peak_memory_bytes", 0) / 1e9,
        "losses": [round(r.loss, 4) for r in rows if r.loss is not None][:: max(1, args.steps // 5)],
        "file bytes": Path(summary["adapter"]).stat().st_size, "verify": verdict,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
