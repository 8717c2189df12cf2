"""What a run measured on its way, a row a step: written as it goes, and read back from its folder. Torch-free."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from finetune import files
from finetune.text import from_json


@dataclass(frozen=True)
class Row:
    """One step; None is what was not measured at it, or was not finite."""

    step: int  # how many were done
    loss: float | None = None
    loss_smooth: float | None = None
    lr: float | None = None
    steps_per_second: float | None = None
    held_out_loss: float | None = None
    held_out_by_timestep: tuple[float, ...] | None = None
    held_out_change: float | None = None  # against the base's, over the same pictures, with its 95 % interval
    held_out_change_low: float | None = None
    held_out_change_high: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Row":
        """Raises:
        LookupError, TypeError, ValueError: it has no step, or something that is no number.
        """
        measured: dict[str, Any] = {}
        for name in cls.__dataclass_fields__.keys() - {"step"}:
            if (value := values.get(name)) is not None:
                measured[name] = tuple(map(_float, value)) if name == "held_out_by_timestep" else _float(value)
        return cls(int(values["step"]), **measured)

    @property
    def measured(self) -> dict[str, Any]:
        """What was measured, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "step" and getattr(self, f.name) is not None}


def append(path: Path, step: int, values: Mapping[str, Any]) -> None:
    """Adds what was measured at a step; JSON has no infinity, and so what is not finite is null.

    Raises:
        ResourceError: the disk is full or the place is not writable.
    """
    numbers = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    with files.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step} | numbers) + "\n")


def read(path: Path) -> list[Row]:
    """A row for each step in order, whatever the number of its lines; lines that are no row, as of a killed process, are passed over.

    Raises:
        OSError: it cannot be read.
    """
    rows: dict[int, Row] = {}
    for line in files.read_text(path, "replace").splitlines():
        try:
            row = Row.of(from_json(line))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            continue
        rows[row.step] = replace(rows[row.step], **row.measured) if row.step in rows else row
    return [rows[step] for step in sorted(rows)]


def rewind(path: Path, step: int) -> float | None:
    """Removes what was measured after a step, and lines that have none; the last smoothed loss of those that stay.

    Raises:
        ResourceError: the disk is full or the place is not writable.
    """
    lines = files.read_text(path, "replace").splitlines() if path.exists() else []
    kept = [line for line in lines if _value(line, "step") <= step]
    if kept != lines:
        files.write_text(path, "".join(f"{line}\n" for line in kept))
    losses = [_value(line, "loss_smooth") for line in kept]
    return next((loss for loss in reversed(losses) if math.isfinite(loss)), None)


def _value(line: str, name: str) -> float:
    """What a line says of one thing; infinity where it says nothing."""
    try:
        return float(from_json(line)[name])
    except (ValueError, LookupError, TypeError, OverflowError):
        return float("inf")


def plain_number(value: object) -> float:
    """What JSON gave, as it is.

    Raises:
        TypeError: it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _float(value: object) -> float:
    return float(plain_number(value))
