"""An adapter file that a run goes on from: read, checked against the base and the job, and handed over by network and layer."""

from finetune.adapters import landing
from finetune.adapters.read import read
from finetune.adapters.weights import Weights
from finetune.config.adapter_types import ROWS, AdapterType
from finetune.config.job import Job
from finetune.errors import ConfigError
from finetune.families.family import Family
from finetune.families.names.text_encoders import bare
from finetune.methods.adapter import Change, Learned, RankAlpha, Start
from finetune.methods.trainees import DENOISER, taught


def start(job: Job, family: Family) -> dict[str, Start] | None:
    """What the job's `method.start` holds, or None where it names no file.

    Raises:
        ConfigError: it is of another type, was made for another base, or changes a network that the job does not train.
        DataError: it cannot be read.
    """
    path, spec = job.method.start, family.spec
    if path is None:
        return None
    file, row = read(path, spec.name), ROWS[job.method.kind]
    modules = file.on(spec.denoiser)
    idle = {part: family.idle(part) for part in {part for part, _ in modules}}
    modules = {(part, m): w for (part, m), w in modules.items() if not m.startswith(idle[part])}
    shapes = landing.shapes_of(family.parts)
    if misfit := landing.shape_misfit(shapes, modules):
        raise ConfigError(f"method.start {path}: was made for another base: {family.source.id} {misfit}", "choose its base with --base")
    kinds = {w.kind for w in modules.values()}
    if odd := kinds - _continued(row):
        able = ", ".join(kind for kind, other in ROWS.items() if kinds <= _continued(other)) or "none here"
        raise ConfigError(f"method.start {path}: holds {', '.join(sorted(odd))}", f"--adapter {able} goes on from it")
    strength, usual = None, job.method.rank  # the rank is that of whole differences, which have none of their own
    if file.contract and file.contract.rank:  # of a file of ours the strength is folded in, and the header has the one that it trained with
        strength, usual = file.contract.training_alpha / file.contract.rank, file.contract.rank
    parts: dict[str, dict[str, Learned]] = {part: {} for part in taught(family, job)}
    names = {spec.denoiser: DENOISER}
    there = _layers(family, {folder for folder, _ in modules})
    for (folder, module), w in modules.items():
        w, part = w.shaped(landing.weight_shape(shapes, (folder, module))), names.get(folder, folder)
        if part not in parts:
            raise ConfigError(f"method.start {path}: changes the {folder} too", "--set method.text_encoder=true trains it too")
        change = _change(w, row, str(path))
        rank = usual if w.kind == "full" else w.rank or _whole(w)
        alpha = rank * (w.strength if strength is None else strength)
        name = module if module in there[folder] else bare(module)
        parts[part][name] = Learned(change, RankAlpha(rank, alpha))
    if empty := [part for part, learned in parts.items() if not learned]:
        raise ConfigError(f"method.start {path}: holds nothing for the {empty[0]}", "leave method.text_encoder out")
    return dict(parts)


def _continued(row: AdapterType) -> set[str]:
    """The kinds of files that an adapter of this type goes on from."""
    return {*row.after, row.file} if row.tensors else set(row.after)


def _layers(family: Family, folders: set[str]) -> dict[str, set[str]]:
    """The names of all modules of networks."""
    return {folder: {name for name, _ in family.parts.skeleton(folder).named_modules()} for folder in folders}


def _whole(w: Weights) -> int:
    """Of LoKr's whole matrices: a rank that leaves them whole."""
    return max(max(t.shape) for t in w.tensors.values())


def _change(w: Weights, row: AdapterType, path: str) -> Change:
    tensors = {k: t.float() for k, t in w.tensors.items()}
    if "dora" in tensors:
        rows = w.rows()
        if rows is None:
            raise ConfigError(f"method.start {path}: holds norms of columns, and DoRA trains those of rows", "start without it")
        tensors["rows"] = rows.float()
        del tensors["dora"]
    if w.kind in row.after and not tensors.keys() - {"diff", "down", "up"}:
        return Change(w.kind, tensors if w.kind == "full" else tensors | {"up": tensors["up"] * w.strength})
    if odd := tensors.keys() - row.tensors.keys():
        raise ConfigError(f"method.start {path}: holds {', '.join(sorted(odd))} tensors, which are not trained here", "start without it")
    first = next(k for k in row.folded if k in tensors)
    tensors[first] = tensors[first] * w.strength
    return Change(w.kind, tensors)
