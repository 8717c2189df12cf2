"""An adapter file that a run goes on from: read, checked against the base and the job, and handed over by network and layer."""

from finetune.adapters.read import read
from finetune.adapters.weights import Weights
from finetune.config.job import Job
from finetune.errors import ConfigError
from finetune.families.load import Family
from finetune.methods import method
from finetune.methods.adapter import Change, Start
from finetune.methods.rows import ROWS
from finetune.sampling import apply


def start(job: Job, family: Family) -> dict[str, Start] | None:
    """What the job's `method.start` holds, or None where it names no file.

    Raises:
        ConfigError: it is of another type, was made for another base, or changes a network that the job does not train.
        DataError: it cannot be read.
    """
    path, spec = job.method.start, family.spec
    if path is None:
        return None
    found, row = read(path, spec.name), ROWS[job.method.kind]
    modules = found.on(spec.denoiser)
    if misfit := apply.misfit(family, modules):
        raise ConfigError(f"method.start {path}: was made for another base: {family.source.id} {misfit}", "choose its base with --base")
    if odd := {w.kind for w in modules.values()} - {row.file}:
        able = ", ".join(kind for kind, r in ROWS.items() if r.tensors and r.file in odd) or "none here"
        raise ConfigError(f"method.start {path}: holds {', '.join(sorted(odd))}", f"--adapter {able} goes on from it")
    parts: dict[str, dict[str, Change]] = {part: {} for part in method.taught(family, job)}
    names = {spec.denoiser: method.DENOISER}
    for (folder, module), w in modules.items():
        part = names.get(folder, folder)
        if part not in parts:
            raise ConfigError(f"method.start {path}: changes the {folder} too", "--set method.text_encoder=true trains it too")
        parts[part][_own_name(family, folder, module)] = _change(w, row.tensors.keys() | {"alpha"}, str(path))
    if empty := [part for part, own in parts.items() if not own]:
        raise ConfigError(f"method.start {path}: holds nothing for the {empty[0]}", "leave method.text_encoder out")
    return dict(parts)


def _own_name(family: Family, part: str, module: str) -> str:
    """The layer's name in this version of the libraries: newer ones leave CLIP's `text_model.` out."""
    there = {n for n, _ in family.parts.skeleton(part).named_modules()}
    return module if module in there else module.removeprefix("text_model.")


def _change(w: Weights, known: set[str], path: str) -> Change:
    tensors, strength = {k: t.float() for k, t in w.tensors.items()}, w.strength
    if "dora" in tensors:
        rows = w.rows()
        if rows is None:
            raise ConfigError(f"method.start {path}: holds norms of columns, and DoRA trains those of rows", "start without it")
        tensors["rows"] = rows.float()
        del tensors["dora"]
    if odd := tensors.keys() - known:
        raise ConfigError(f"method.start {path}: holds {', '.join(sorted(odd))} tensors, which are not trained here", "start without it")
    first = next(k for k in ("up", "w1_a", "k1", "k1_a") if k in tensors)
    tensors[first] = tensors[first] * strength
    full = max(max(t.shape) for t in tensors.values()) if w.kind == "lokr" else 0  # of two whole matrices: a rank that leaves them whole
    return Change(w.kind, tensors, w.rank or full)
