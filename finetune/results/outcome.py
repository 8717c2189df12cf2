"""What there is to draw with in a run's folder: the files that it ended with, or a step that it saved on its way. Torch-free to import."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune import files
from finetune.errors import DataError
from finetune.results import checkpoint, summary
from finetune.run_folder import RunFolder, step_of, typed


@dataclass(frozen=True)
class Outcome:
    """Files, by what they are: `model` is that of a whole fine-tune, and a base to draw with; `vae` an autoencoder for one."""

    adapter: Path | None = None
    embeddings: tuple[Path, ...] = ()
    model: Path | None = None
    vae: Path | None = None

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.adapter, *self.embeddings, self.model, self.vae) if path]

    @classmethod
    def of(cls, written: Mapping[str, Path]) -> "Outcome":
        """From files by the kinds that a summary knows."""
        tokens = sorted(kind for kind in written if kind.startswith("embedding"))
        return cls(written.get("adapter"), tuple(written[kind] for kind in tokens), written.get("model"), written.get("vae"))


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint of a run: no file that anything reads, until training/rebuilt.py writes it as one."""

    run: Path
    step: int


def find(path: Path) -> Outcome | SavedStep | None:
    """What a run's folder ended with, or the saved step that a path in it names, as `checkpoints/step-200`; None for any other path.

    Raises:
        DataError: the run is not finished, or has no such step. Says what there is.
    """
    if _is_run(path):
        return _finished(path)
    folder, run = path.parent, path.parent.parent
    if path in (RunFolder(folder).checkpoints, RunFolder(folder).averages) and _is_run(folder):
        raise DataError(f"{path}: holds what the run saved on its way; {_there(folder)}", _next(folder))
    if folder == RunFolder(run).averages and _is_run(run):
        raise DataError(f"{path}: is one part of an average", f"ft adapter average {run} --length 0.1 writes one")
    if folder == RunFolder(run).checkpoints and _is_run(run):
        return _saved(path, run)
    return None


def autoencoder_of(path: Path) -> Path:
    """An autoencoder's file or folder; of a run's folder what it made.

    Raises:
        DataError: the run made none, or is not finished.
    """
    ended = find(files.home(path))
    if ended is None:
        return path
    if isinstance(ended, SavedStep):
        raise DataError(f"{path}: is a saved step, and no file of an autoencoder", "the run's folder, once it is finished")
    if ended.vae is None:
        raise DataError(f"{path}: this run made no autoencoder", "`ft vae` makes one")
    return ended.vae


def _is_run(path: Path) -> bool:
    return RunFolder(path).record.is_file()


def _finished(run: Path) -> Outcome:
    try:
        written = summary.files_of(run)
    except (OSError, ValueError, LookupError, TypeError):
        raise DataError(f"{run}: this run is not finished; {_there(run)}", _next(run)) from None
    if gone := [path.name for path in written.values() if not path.exists()]:
        raise DataError(f"{run}: {gone[0]}, which this run ended with, is gone; {_there(run)}", _next(run))
    return Outcome.of(written)


def _saved(path: Path, run: Path) -> SavedStep:
    step = step_of(path.name)
    if step is not None and step in checkpoint.steps(RunFolder(run).checkpoints):
        return SavedStep(run, step)
    raise DataError(f"{path}: is no saved step; {_there(run)}", _next(run))


def _there(run: Path) -> str:
    steps = checkpoint.steps(RunFolder(run).checkpoints)
    return f"saved steps: {', '.join(map(str, steps))}" if steps else "it has saved no step"


def _next(run: Path) -> str:
    steps = checkpoint.steps(RunFolder(run).checkpoints)
    draws = [f"--adapter {typed(RunFolder(run).checkpoints, steps[0])} draws with that step"] if steps else []
    return "; ".join([*draws, "the command that began the run goes on with it"])
