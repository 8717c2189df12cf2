"""Where a base is: a short name, a Hub id, a folder, or a single file, resolved to files on this disk. Torch-free."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from finetune.errors import AccessError, ConfigError, line
from finetune.families import contents
from finetune.families.catalogue import BASES, FAMILIES, PARTS, not_yet, of_pipeline
from finetune.families.hashes import file_hash
from finetune.families.spec import ZERO_SNR, FamilySpec, KnownBase
from finetune.files import home

RESCALE = 0.7  # of guidance, which would overexpose otherwise: the same paper, section 3.4
CONFIG_FILES = ["model_index.json", "*/*.json", "*/*.txt"]
VARIANTS = "*/*.*.safetensors"  # such as fp16 and non_ema, beside the weights themselves: what diffusers opens only when asked


INCOMPLETE = "the base is incomplete; download it again, or check the folder"
UNKNOWN = "such a base takes more, or other, than noise and a text; `ft models` lists those that are known"
MOST_GUIDANCE = 100


def reason(error: Exception) -> str:
    """What an exception says, as one line."""
    return line(str(getattr(error, "strerror", None) or error) or type(error).__name__)


class Config(dict[str, Any]):
    """A component's settings; one that it lacks is an AccessError."""

    def __init__(self, base: str, name: str, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.base, self.name = base, name

    def __missing__(self, key: str) -> Any:
        raise AccessError(f"--base {self.base}: {self.name} does not say {key}", INCOMPLETE)


@dataclass(frozen=True)
class Source:
    """A base on this disk. `id` names it without a path: short name, Hub id, or the folder's name."""

    id: str
    folder: Path
    spec: FamilySpec
    revision: str | None = None
    variant: str | None = None
    guidance: float | None = None
    licence: str | None = None  # of a known base
    zero_snr: bool = False  # its schedule is to end in pure noise, and to be sampled from there (Lin et al. 2023, arXiv:2305.08891)
    vae: Path | None = None  # the folder of another autoencoder in the place of its own (families/autoencoder_file.py)
    vae_id: str | None = None  # what that was called, without a path

    def place(self, component: str) -> Path:
        """The folder of a component."""
        return self.vae if self.vae and component == "vae" else self.folder / component

    def _named(self, component: str) -> str:
        """What a person gave that a component lies in."""
        return f"--vae {self.vae_id}" if self.place(component) == self.vae else f"--base {self.id}"

    def variant_of(self, component: str) -> str | None:
        """The weight variant that a component is opened in."""
        return None if self.vae and component == "vae" else self.variant

    def config(self, component: str) -> dict[str, Any]:
        """A component's own JSON configuration, without what could choose code.

        Raises:
            AccessError: it cannot be read, or asks for what is not supported.
        """
        name = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(component, "config.json")
        try:
            value, _ = contents.cleaned(component, name, contents.read_json(self.place(component) / name))
        except (OSError, ValueError) as e:
            raise AccessError(f"--base {self.id}: cannot read {component}/{name} ({reason(e)})", INCOMPLETE) from e
        return Config(self.id, f"{component}/{name}", value | ZERO_SNR if component == "scheduler" and self.zero_snr else value)

    @contextmanager
    def reading(self, component: str, keys: Collection[str] | None = None) -> Iterator[Path]:
        """The folder that a library may read a component from, whose config has no other than these `keys`; and whatever the library
        raises for one that is missing or damaged, as an AccessError that names it."""
        try:
            with contents.library_view(self.place(component), self.id, keys) as folder:
                yield folder
        except (AccessError, MemoryError):
            raise
        except Exception as e:  # libraries raise OSError, ValueError, KeyError, TypeError, RuntimeError and more
            if "out of memory" in str(e).lower() or "DefaultCPUAllocator" in str(e):
                raise
            raise AccessError(f"{self._named(component)}: cannot load {component} ({reason(e)})", INCOMPLETE) from e

    def weights(self, component: str) -> list[Path]:
        """The weight files of a component, in this variant.

        Raises:
            AccessError: there are none.
        """
        files, variant = sorted(self.place(component).glob("*.safetensors")), self.variant_of(component)
        chosen = [f for f in files if re.search(rf"\.{re.escape(variant)}[.-]", f.name)] if variant else files
        if not chosen:
            raise AccessError(f"--base {self.id}: no weights in {component}/", INCOMPLETE)
        return chosen

    def index(self) -> dict[str, Any]:
        """The pipeline's own `model_index.json`."""
        return contents.pipeline(self.folder)

    def sampler(self, name: str | None) -> Any:
        """A diffusers scheduler by the family's short name (its default one), made from the base's own config."""
        import diffusers

        cls = getattr(diffusers, self.spec.samplers[name or self.spec.sampler])
        return cls.from_config(self.config("scheduler"))

    @property
    def guidance_rescale(self) -> float:
        """How much of the guided answer's deviation is brought back to that of the plain one."""
        return RESCALE if self.config("scheduler").get("rescale_betas_zero_snr") else 0.0

    def fingerprint(self, *components: str) -> str:
        """sha256 over the names and bytes of the components' configs and weights."""
        digest = hashlib.sha256()
        for component in components:
            folder = self.place(component)
            weights = self.weights(component) if component in self.spec.parts else []
            for path in sorted([*folder.glob("*.json"), *folder.glob("*.txt"), *weights]):
                digest.update(f"{component}/{path.name} {file_hash(path)}\n".encode())
        return digest.hexdigest()


def default_base(user_choice: str | None, accelerator: bool) -> tuple[str, str]:
    """The base to use where no flag names one, and the line that says why."""
    if env := os.environ.get("FT_BASE"):
        return env, f"base: {env} (from FT_BASE; --base chooses another)"
    if user_choice:
        return user_choice, f"base: {user_choice} (from your config; --base chooses another)"
    if accelerator:
        return "sd15", "base: sd15 (an accelerator was found; --base chooses another, `ft models` lists them)"
    return "tiny", "base: tiny: draws 64-pixel emoji (no accelerator was found; --base chooses another, `ft models` lists them)"


def resolve_base(
    base: str,
    variant: str | None = None,
    weights: bool = True,
    prediction: str | None = None,
    allow_pickle: bool = False,
    parts: Collection[str] = PARTS,
) -> Source:
    """Finds a base; downloads from the Hub what is not in its cache (`weights=False`: only configs), the weights of these `parts`.

    `prediction` is for single files, which may not say what they predict; so is `allow_pickle`: folders are safetensors only.

    Raises:
        AccessError: not found, gated, offline, not a diffusers pipeline, or a pipeline of an unknown family.
        ConfigError: a prediction for a base that says its own.
    """
    if prediction and not home(base).is_file():
        raise ConfigError(f"model.prediction_type {prediction}: this base says its own", "leave it out; it is for single files")
    known = BASES.get(base)
    if known and known.hub is None:
        return _read(base, known.folder(), None, None, known)
    if known and not weights:  # what they are is known to the package: no need to ask the Hub
        from finetune.families import single_file

        return _read(base, single_file.skeleton(single_file.shipped_configs(base)), None, None, known)
    path = home(base)
    if path.is_dir():
        return _read(path.resolve().name, path, None, variant, None)
    if path.is_file() or path.suffix in (".safetensors", ".ckpt", ".bin"):
        return _single_file(base, path, weights, prediction, allow_pickle)
    check_base(base)
    hub_id, _, revision = (known.hub if known and known.hub else base).partition("@")
    folder, commit = _download(hub_id, revision or None, variant, parts if weights else ())
    return _read(hub_id, folder, commit, variant, known)


def known_name(base: str) -> str | None:
    """The short name of a known base, or of the Hub's id of one."""
    ids = {entry.hub.partition("@")[0]: name for name, entry in BASES.items() if entry.hub}
    return base if base in BASES else ids.get(base)


def check_base(base: str) -> None:
    """Raises:
    AccessError: it cannot be a base: it is no known name, is not on this disk, and cannot be a Hub id.
    """
    path = home(base)
    if base in BASES or path.is_dir() or path.is_file():
        return
    if path.suffix in (".safetensors", ".ckpt", ".bin"):
        raise AccessError(f"--base {base}: no such file")
    hub_id = base.partition("@")[0]
    if hub_id.count("/") == 1 and not hub_id.startswith((".", "/", "~")):
        return
    if family := not_yet(hub_id):
        raise AccessError(f"--base {base}: {family} is not supported yet", "`ft models` lists the bases that are")
    known_names = ", ".join(BASES)
    raise AccessError(
        f"--base {base}: no such folder, and not a Hub id (owner/name) or one of: {known_names}", "`ft models` lists the bases"
    )


def _single_file(base: str, path: Path, weights: bool, prediction: str | None, allow_pickle: bool) -> Source:
    if not path.exists():
        raise AccessError(f"--base {base}: no such file")
    from finetune.families import single_file

    if path.suffix != ".safetensors":
        there = single_file.unpickled(path) if path.suffix in single_file.PICKLES else None
        if there is None and not (allow_pickle and path.suffix in single_file.PICKLES):
            hint = "convert it to safetensors; a run's --allow-pickle does, which takes its tensors and runs nothing"
            raise AccessError(f"--base {base}: only .safetensors files are opened; others can run code", hint)
        name, path = path.stem, there or single_file.unpickle(path)
    else:
        name = path.stem
    checkpoint = single_file.identify(path, prediction)
    folder = single_file.unpack_checkpoint(checkpoint) if weights else single_file.skeleton(checkpoint.configs)
    return _read(name, folder, None, None, None)


def _read(name: str, folder: Path, revision: str | None, variant: str | None, known: KnownBase | None) -> Source:
    try:
        index = contents.pipeline(folder)
        pipeline = line(index["_class_name"], 60)
    except (OSError, ValueError) as e:
        raise AccessError(
            f"--base {name}: {folder} holds no readable model_index.json ({reason(e)})", "a base is a diffusers pipeline folder"
        ) from e
    if spec := of_pipeline(pipeline):
        guidance = known.guidance if known else _told_guidance(folder)
        source = Source(name, folder, spec.of(index), revision, variant, guidance, known.licence if known else None)
        _check_understood(source)
        return source
    pipelines = ", ".join(chain.from_iterable(spec.pipelines for spec in FAMILIES))
    if family := not_yet(name, pipeline):
        raise AccessError(f"--base {name}: {family} is not supported yet; known pipelines are: {pipelines}", "`ft models` lists bases")
    raise AccessError(
        f"--base {name}: its pipeline is {pipeline}; known are: {pipelines}", "there is no fallback to a family that does not fit"
    )


def _told_guidance(folder: Path) -> float | None:
    """What a fine-tune of ours says of its use; nothing of any other folder."""
    try:
        value = contents.read_json(folder / "finetune.json").get("guidance")
    except (OSError, ValueError):
        return None
    return float(value) if isinstance(value, int | float) and 0 <= value <= MOST_GUIDANCE else None


def _check_understood(source: Source) -> None:
    """Raises:
    AccessError: a config asks the denoiser or its noise for what is not understood, or sizes contradict each other.
    """
    spec = source.spec
    configs = {part: source.config(part) for part in ("scheduler", *spec.parts)}
    for part, settings in spec.understood.items():
        for key, values in settings.items():
            if key in configs[part] and not any(configs[part][key] == v for v in values):
                value = line(json.dumps(configs[part][key]), 60)
                known = ", ".join(json.dumps(v) for v in values)
                raise AccessError(f"--base {source.id}: {part} has {key} {value}; {spec.name} is known with {known}", UNKNOWN)

    def size(name: str | int) -> Any:
        if isinstance(name, int):
            return name
        part, _, key = name.partition(".")
        return configs[part].get(key)

    for whole, summands in {**spec.sums, **spec.edition(source).sums}.items():
        total, parts = size(whole), [size(name) for name in summands]
        if total is None or None in parts:  # the class's own, or shown to be none when it is loaded
            continue
        if not all(isinstance(n, int) for n in (total, *parts)) or total != sum(parts):
            value = " + ".join(f"{name} {line(str(n), 20)}" for name, n in zip(summands, parts, strict=True))
            raise AccessError(f"--base {source.id}: its {whole} is {line(str(total), 20)}, and {value} do not add up to it", UNKNOWN)


def _download(hub_id: str, revision: str | None, variant: str | None, weights: Collection[str]) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        DryRunError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    suffix = f"*.{variant}[.-]*safetensors" if variant else "*.safetensors"
    wanted: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": CONFIG_FILES + [f"{part}/{suffix}" for part in weights],
        "ignore_patterns": None if variant else [VARIANTS],
    }
    try:
        if weights:
            with suppress(DryRunError):  # offline: what is here already will do, or it is said below that nothing is
                _say_size(hub_id, snapshot_download(hub_id, dry_run=True, **wanted))
        folder = Path(snapshot_download(hub_id, **wanted))
    except GatedRepoError as e:
        raise AccessError(f"--base {hub_id}: gated", f"accept its terms at https://huggingface.co/{hub_id}, then `hf auth login`") from e
    except RevisionNotFoundError as e:
        raise AccessError(f"--base {hub_id}: no revision {revision}", "check the branch, tag or commit after the @") from e
    except RepositoryNotFoundError as e:
        raise AccessError(f"--base {hub_id}: no such model on the Hub, or it is private", "check the name, or `hf auth login`") from e
    except HFValidationError as e:
        raise AccessError(f"--base {hub_id}: no such folder, and not a Hub id", "`ft models` lists the bases") from e
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        hint = "connect once to download it, or use --base tiny, which ships with the package"
        raise AccessError(f"--base {hub_id}: not in the local cache, and the Hub cannot be reached", hint) from e
    return folder, folder.name


def _say_size(hub_id: str, files: list[Any]) -> None:
    """What is about to be downloaded, where it is more than configs: the Hub client's list of files."""
    coming = [f for f in files if f.will_download]
    if any(f.filename.endswith(".safetensors") for f in coming):
        size = sum(f.file_size or 0 for f in coming)
        print(f"downloading {hub_id}: {size / 1e9:.2f} GB in {len(coming)} files, kept in the Hub's cache", file=sys.stderr)


def cached(hub_id: str) -> bool:
    """Whether the Hub cache on this disk holds the base's index."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "model_index.json"), str)
