"""Whether the files are there that a command names: said at once, before the libraries are imported that would read them."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from finetune import files
from finetune.adapters.chosen import parse_adapter
from finetune.config import Job
from finetune.errors import ConfigError, DataError
from finetune.families import autoencoder_file, source
from finetune.header import header_of, tensors_file
from finetune.results import outcome
from finetune.results.outcome import Outcome, SavedStep
from finetune.run_folder import RunFolder
from finetune.text import AUTO


def of_job(job: Job, base: bool) -> None:
    """The places of pictures, the file to start from, and with `base` the base.

    Raises:
        DataError, AccessError: one is missing.
    """
    from finetune.data.scan import check_place

    for place in job.data.places:
        check_place(place.path)
    if job.data.holdout not in (None, AUTO) and not _number(job.data.holdout):
        check_place(job.data.holdout)
    _check_no_run("--base", job.model.base, "model")
    if job.method.start is not None:
        _check_no_run("method.start", str(job.method.start), "adapter")
        header_of(tensors_file(files.home(job.method.start)))
    if job.model.vae is not None:
        check_autoencoder(outcome.autoencoder_of(job.model.vae))
    if base:
        source.check_base(job.model.base)


def _check_no_run(flag: str, given: str, kind: Literal["model", "adapter"]) -> None:
    """Raises:
    DataError: a run's folder stands in the place of what the run made. Its hash is a part of what the new run is known by, so it is named.
    """
    ended = outcome.find(files.home(given))
    if isinstance(ended, Outcome):
        made: Path | None = getattr(ended, kind)
        typed = f"{flag} {made}" if flag.startswith("-") else f"--set {flag}={made}"
        hint = typed if made else f"that run made no {kind}"
        raise DataError(f"{flag} {given}: is the folder of a run, and not the {kind} that it made", hint)


class Drawn(NamedTuple):
    """Files to draw with: what `finetune.sampling.generate.Request` takes."""

    adapters: list[str]  # path[:weight]
    embeddings: list[Path]
    base: str | None


def of_drawing(adapters: Iterable[str], embeddings: Iterable[Path], base: str | None) -> Drawn:
    """Adapter and embedding files and the base, each also as the folder or saved step of the run that made it.

    Raises:
        ConfigError, DataError, AccessError: one is missing, or its header is no safetensors file's; or a run made none of that kind.
    """
    drawn = Drawn([], [], base)
    if base:
        drawn = drawn._replace(base=_model(base))
        source.check_base(str(drawn.base))
    for text in adapters:
        drawn = _with_adapter(drawn, text)
    for path in embeddings:
        drawn.embeddings.extend(_embeddings(files.home(path)))
    return drawn._replace(embeddings=list(dict.fromkeys(drawn.embeddings)))  # a run's adapter brought its own along


def autoencoder(path: Path) -> Path:
    """An autoencoder's file or folder, also as the folder or saved step of the run that made it.

    Raises:
        DataError: it is missing, or no autoencoder's; or the run made none.
    """
    if ended := _made(files.home(path)):
        if ended.vae is None:
            raise DataError(f"--vae {path}: this run made no autoencoder", "`ft vae` makes one")
        path = ended.vae
    check_autoencoder(path)
    return path


def check_autoencoder(path: Path) -> None:
    """Raises:
    DataError: it is missing, would run code, or its header is no safetensors file's.
    """
    path = files.home(path)
    autoencoder_file.check_file(path)
    if path.is_file():
        header_of(path)


def _with_adapter(drawn: Drawn, text: str) -> Drawn:
    path, weight = parse_adapter(text)
    if (ended := _made(path, drawn.base)) is None:
        adapter(path)
        return drawn._replace(adapters=[*drawn.adapters, text])
    if ended.vae:
        raise ConfigError(f"--adapter {text}: this run made an autoencoder", f"--vae {path} draws with it")
    if ended.adapter is None and weight != 1:
        raise ConfigError(f"--adapter {text}: a weight is for an adapter, and this run made none", "leave it out")
    if ended.model and drawn.base:
        raise ConfigError(f"--base {drawn.base}: {path} made a whole model, which is a base itself", "leave one of them out")
    return Drawn(
        [*drawn.adapters, *([f"{ended.adapter}:{weight}"] if ended.adapter else [])],
        [*drawn.embeddings, *ended.embeddings],
        str(ended.model) if ended.model else drawn.base,
    )


def _embeddings(path: Path) -> Iterable[Path]:
    if (ended := _made(path)) is None:
        header_of(path)
        return [path]
    if not ended.embeddings:
        raise DataError(f"--embedding {path}: this run made none", f"--adapter {path}")
    return ended.embeddings


def _made(path: Path, base: str | None = None) -> Outcome | None:
    """What a run ended with; of a saved step, what it is written as now."""
    ended = outcome.find(path)
    if not isinstance(ended, SavedStep):
        return ended
    from finetune.training.rebuilt import write_step

    written = Outcome.of(write_step(ended.run, ended.step, base))
    for path in written.paths:
        print(f"wrote {path}: step {ended.step} of {ended.run} as a file of its own", file=sys.stderr)
    return written


def _model(base: str) -> str:
    if (ended := _made(files.home(base))) is None:
        return base
    if not ended.model:
        raise ConfigError(f"--base {base}: this run made no whole model", f"--adapter {base}")
    return str(ended.model)


def adapter(path: Path) -> Path:
    """The adapter's file, or a PEFT folder; of a run's folder or saved step what it made, an embedding where it made no adapter.

    Raises:
        DataError: it is missing, or its header is no safetensors file's; or the run made a whole model.
    """
    if ended := _made(path):
        if ended.model:
            raise DataError(f"{path}: this run made a whole model, and no adapter", f"ft generate --base {ended.model} draws with it")
        if ended.vae:
            raise DataError(f"{path}: this run made an autoencoder, and no adapter", f"ft generate --vae {ended.vae} draws with it")
        path = ended.paths[0]
    if path.is_dir() and not tensors_file(path).exists():
        raise DataError(f"{path}: holds no adapter, and is no run's folder", "give a file, the folder of a run, or one that PEFT wrote")
    header_of(tensors_file(path))
    return path


def _number(text: str) -> bool:
    with suppress(ValueError):
        return float(text) >= 0
    return False


def check_pictures_place(folder: Path) -> None:
    """Raises:
    DataError: no pictures can be there.
    """
    from finetune.data.scan import check_place

    check_place(str(folder))


def check_run_folder(folder: Path) -> None:
    """Raises:
    DataError: it is no folder of a run.
    """
    if not RunFolder(folder).record.exists():
        raise DataError(f"{folder}: is not the folder of a run", "give the --out of a run")
