"""What a run notes beside a checkpoint's tensors, so that it can go on from there. Torch-free."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from finetune.results.summary import Measure


@dataclass(frozen=True)
class Progress:
    """How far a run is, and what it has measured."""

    step: int  # how many were done
    steps: int  # how many it is to have
    identity: dict[str, Any]  # what must not differ when the run goes on
    looked: int  # the last step that was looked at
    best: float | None  # the lowest held-out loss
    change: Measure | None  # of the last held-out loss against the base's
    scaler: dict[str, Any] | None  # state of the fp16 scaler
    skipped: int  # updates that the scaler dropped

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Progress":
        """From what `record` gives; older versions measured no change and knew no scaler.

        Raises:
            LookupError, TypeError: it is of no run.
        """
        change = record.get("change")
        return cls(
            step=record["step"],
            steps=record["steps"],
            identity=record["identity"],
            looked=record["looked"],
            best=record["best"],
            change=Measure(**change) if change else None,
            scaler=record.get("scaler"),
            skipped=record.get("skipped", 0),
        )

    def record(self) -> dict[str, Any]:
        """As JSON says it."""
        return asdict(self)
