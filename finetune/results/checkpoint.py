"""Checkpoints that are valid or ignored: safetensors and JSON, with a manifest of sizes and hashes written last. Torch-free to import."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import files
from finetune.run_folder import BEST, FACTS, HALVES, MANIFEST, STATE, STEPS, step_folder, step_of
from finetune.text import from_json

if TYPE_CHECKING:  # whoever only looks for checkpoints need not wait for torch
    from torch import Tensor

State = dict[str, "Tensor"]
PARTS = (STATE, FACTS)


def steps(root: Path) -> list[int]:
    """Steps that have a folder, newest first, valid or not."""
    numbers = (step_of(p.name) for p in root.glob(STEPS) if p.is_dir())
    return sorted((n for n in numbers if n is not None), reverse=True)


def save(root: Path, step: int, tensors: State, more: dict[str, Any], keep: int) -> Path:
    """Writes one checkpoint, then removes what is not worth keeping: older ones than the newest `keep`, later ones (left from
    before a fall back to this step), and what a killed save left half-written."""
    from safetensors.torch import save_file

    def fill(folder: Path) -> None:
        folder.mkdir()
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, folder / STATE)
        (folder / FACTS).write_text(json.dumps({"step": step} | more, sort_keys=True), encoding="utf-8")
        manifest = {p: {"size": (folder / p).stat().st_size, "sha256": files.sha256(folder / p)} for p in PARTS}
        (folder / MANIFEST).write_text(json.dumps(manifest, sort_keys=True), encoding="utf-8")

    folder = step_folder(root, step)
    files.write(folder, fill)
    keep_newest(root, step, keep)
    return folder


def keep_newest(root: Path, step: int, keep: int) -> None:
    """Removes what a run at this step does not go on from: older checkpoints than the newest `keep`, later ones, and halves of some."""
    saved = steps(root)
    for old in [s for s in saved if s > step] + [s for s in saved if s <= step][keep:]:
        shutil.rmtree(step_folder(root, old), ignore_errors=True)
    for pattern in HALVES:
        for half in list(root.glob(pattern)):
            shutil.rmtree(half, ignore_errors=True)


def remove(root: Path) -> None:
    """All of them, and the best state, of a run that has ended; what somebody else put there stays."""
    for step in steps(root):
        shutil.rmtree(step_folder(root, step), ignore_errors=True)
    (root / BEST).unlink(missing_ok=True)
    with suppress(OSError):
        root.rmdir()


def is_valid(folder: Path) -> bool:
    """Whether every file has the size and the hash that the manifest says."""
    try:
        manifest = from_json(files.read_text(folder / MANIFEST))
        return manifest.keys() >= set(PARTS) and all(_is_as_written(folder / name, row) for name, row in manifest.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_as_written(path: Path, row: Mapping[str, Any]) -> bool:
    return bool(path.stat().st_size == row["size"] and files.sha256(path) == row["sha256"])


def valid(root: Path) -> Iterator[Path]:
    """Valid checkpoints, newest first."""
    return (f for f in (step_folder(root, s) for s in steps(root)) if is_valid(f))


def facts(folder: Path) -> dict[str, Any]:
    """What was saved beside the tensors, and the `step`."""
    noted: dict[str, Any] = from_json(files.read_text(folder / FACTS))
    return noted


def load(folder: Path) -> State:
    """The tensors, on the CPU."""
    from safetensors.torch import load_file

    return load_file(folder / STATE)


def under(tensors: State, prefix: str) -> State:
    """Those whose names begin so, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
