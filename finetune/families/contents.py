"""What of a base's folder counts: files of known names, and JSON without what would choose code to run. Torch-free.

Libraries obey whatever lies beside a network: a config can name code, kernels or another place on the Hub, and an `adapter_config.json`
loads an adapter. So they are shown known files alone, with cleaned configs; and only such files go into a model that is published.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from finetune import files
from finetune.errors import line
from finetune.families.catalogue import TOKENIZERS
from finetune.text import from_json

MOST_BYTES = 64 * 2**20  # of a JSON file: tokenizers have the largest, of some MB
MOST_NUMBER, MOST_LAYERS, MOST_BLOCKS = 10**6, 1000, 64  # of a network's config: a size, a count of layers, entries of a list
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)([.-][\w.-]+)?\.safetensors(\.index(\.\w+)?\.json)?")
_NETWORK = re.compile(rf"config\.json|generation_config\.json|{WEIGHTS.pattern}")
_WORDS = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|vocab\.json|merges\.txt|special_tokens_map\.json|added_tokens\.json|spiece\.model"
)
_OTHERS = {"scheduler": re.compile(r"scheduler_config\.json"), "feature_extractor": re.compile(r"preprocessor_config\.json")}
_LAYERS = re.compile(r"layers|depth|num_.*blocks")

# Keys that choose what code runs, in any of a base's files.
CODE = frozenset({
    "auto_map", "custom_pipeline", "custom_pipelines", "_attn_implementation", "_attn_implementation_internal",
    "attn_implementation", "_experts_implementation", "experts_implementation", "kernel_config", "use_kernels",
})  # fmt: skip
# Where the files once lay: the business of nobody who reads or publishes them, and of no interest to say.
PLACES = frozenset({"_name_or_path", "name_or_path", "_commit_hash", "special_tokens_map_file", "tokenizer_file"})
TOKENIZER_KEYS = frozenset({
    "add_bos_token", "add_eos_token", "add_prefix_space", "added_tokens_decoder", "additional_special_tokens", "backend", "bos_token",
    "clean_up_tokenization_spaces", "cls_token", "do_lower_case", "eos_token", "errors", "extra_ids", "extra_special_tokens", "is_local",
    "legacy", "local_files_only", "mask_token", "max_length", "model_max_length", "model_specific_special_tokens", "pad_to_multiple_of",
    "pad_token", "pad_token_type_id", "padding_side", "processor_class", "sep_token", "sp_model_kwargs", "spaces_between_special_tokens",
    "split_special_tokens", "stride", "tokenizer_class", "truncation_side", "truncation_strategy", "unk_token", "use_fast",
})  # fmt: skip
# What older versions of the libraries wrote, and no class reads any more.
LEGACY = frozenset({
    "model_type", "torch_dtype", "transformers_version", "architectures", "dtype", "_class_name", "_diffusers_version", "output_past",
    "n_positions", "decoder_start_token_id", "tie_word_embeddings", "task_specific_params", "gradient_checkpointing", "max_length",
    "_use_default_values",
})  # fmt: skip
# What T5's class makes of its other settings, and writes beside them: it makes them again.
DERIVED = frozenset({"dense_act_fn", "is_gated_act", "scale_decoder_outputs"})


def known(component: str, name: str) -> bool:
    """Whether a file of this name belongs to a component of a base."""
    kind = _WORDS if component.startswith("tokenizer") else _OTHERS.get(component, _NETWORK)
    return kind.fullmatch(name) is not None


def complete(component: Path) -> bool:
    """Whether a component is there: of a network, its weights too, which are not downloaded where no run uses them."""
    if not component.is_dir():
        return False
    names = [path.name for path in component.iterdir() if known(component.name, path.name)]
    network = not component.name.startswith("tokenizer") and component.name not in _OTHERS
    return any(WEIGHTS.fullmatch(name) or not network for name in names)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        OSError, ValueError: it cannot be read, or is something else.
    """
    with files.opened(path) as f:
        data = f.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path.name} has more than {MOST_BYTES >> 20} MB")
    value = from_json(data)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return value


def cleaned(component: str, name: str, value: dict[str, Any], keys: Collection[str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """A file's object without what no library may see, and what of that is worth a word; `keys` are all that its class knows.

    Raises:
        ValueError: a value that would be obeyed in a way that is not supported.
    """
    gone: list[str] = []
    if name == "tokenizer_config.json":
        keys = TOKENIZER_KEYS
        if value.get("tokenizer_class", TOKENIZERS[0]) not in TOKENIZERS:
            raise ValueError(f"its tokenizer_class is {line(str(value['tokenizer_class']), 60)}; known are {', '.join(TOKENIZERS)}")
    if name == "tokenizer.json":  # the library's own format, which names no code
        return value, []
    if kind := value.get("quantization_config"):
        method = kind.get("quant_method") if isinstance(kind, dict) else None
        raise ValueError(f"its weights are quantised ({line(str(method), 40)}), which is not supported")
    if name.endswith(".json") and ".index" in name:
        _check_index(value)
        return value, []
    out = _without(value, gone)
    if keys is not None:
        gone += [k for k in out if k not in keys and k not in LEGACY | DERIVED]
        out = {k: v for k, v in out.items() if k in keys or k in LEGACY}
    if name == "config.json":
        _check_sizes(out)
    return out, gone


def _without(value: Any, gone: list[str]) -> Any:
    if isinstance(value, dict):
        gone += [k for k in value if k in CODE]
        return {k: _without(v, gone) for k, v in value.items() if k not in CODE | PLACES}
    return [_without(v, gone) for v in value] if isinstance(value, list) else value


def _check_index(index: dict[str, Any]) -> None:
    """The weights of one network in several files: each in its own folder."""
    named = index.get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(n, str) and WEIGHTS.fullmatch(n) for n in named.values()):
        raise ValueError("its index names files that are no weights of it")


# Sizes that are reckoned with here; classes have others, which they check themselves.
_SIZES = frozenset({
    "sample_size", "in_channels", "out_channels", "cross_attention_dim", "vocab_size", "max_position_embeddings", "hidden_size",
    "latent_channels", "d_model", "joint_attention_dim", "pooled_projection_dim", "projection_class_embeddings_input_dim",
    "addition_time_embed_dim", "projection_dim",
})  # fmt: skip


def _check_sizes(config: dict[str, Any]) -> None:
    for key, value in config.items():
        if (key in _SIZES and not _is_size(value)) or (key == "block_out_channels" and not _are_sizes(value)):
            raise ValueError(f"its {key} is {line(json.dumps(value), 40)}")
        if isinstance(value, list) and len(value) > MOST_BLOCKS:
            raise ValueError(f"its {line(key, 60)} has {len(value)} entries; {MOST_BLOCKS} are believed")
        numbers, most = _numbers(value), MOST_LAYERS if _LAYERS.search(key) else MOST_NUMBER
        if any(abs(n) > most for n in numbers):
            raise ValueError(f"its {line(key, 60)} is {max(map(abs, numbers)):.4g}; {most} is believed")


def _is_size(value: object) -> bool:
    return value is None or (type(value) is int and value > 0)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(n) is int and n > 0 for n in value)


def _numbers(value: object) -> list[int]:
    if isinstance(value, list):
        return list(chain.from_iterable(map(_numbers, value)))
    return [value] if isinstance(value, int) else []


@contextmanager
def library_view(folder: Path, who: str, keys: Collection[str] | None = None) -> Iterator[Path]:
    """A component's folder as libraries may see it: itself, or where it holds more, a passing one of links and cleaned configs.

    What is dropped is said once; `who` is the base's name.

    Raises:
        OSError, ValueError: a file cannot be read, or asks for what is not supported.
    """
    component, names = folder.name, sorted(p.name for p in folder.iterdir())
    configs: dict[str, dict[str, Any]] = {}
    for name in (n for n in names if known(component, n) and n.endswith(".json")):
        value = read_json(folder / name)
        clean, gone = cleaned(component, name, value, keys if name == "config.json" else None)
        for key in gone:
            _say(f"note: {who}: {component}/{name} says {line(key, 60)}, which is left out")
        if clean != value:
            configs[name] = clean
    if not configs and all(known(component, n) for n in names):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="finetune-") as place:
        seen = Path(place) / component
        seen.mkdir()
        for name in (n for n in names if known(component, n)):
            if name in configs:
                files.write_json(seen / name, configs[name])
            else:
                _link((folder / name).resolve(), seen / name)
        yield seen


def _link(path: Path, place: Path) -> None:
    try:
        os.symlink(path, place)
    except OSError:  # Windows asks for a right to do so
        shutil.copyfile(path, place)


@cache
def _say(text: str) -> None:
    """Once in a process, by the first of a run's."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, file=sys.stderr)


def check_links(component: Path) -> None:
    """For what is to be published of the folder of a component, in that of its base.

    Raises:
        ValueError: a known file of the component is a link to somewhere outside of the base.
    """
    base = component.parent
    snapshot = base.parent.name == "snapshots"  # in the Hub's cache, whose files are links to one place
    roots = [base.resolve(), *([(base.parent.parent / "blobs").resolve()] if snapshot else [])]
    for path in sorted(component.iterdir()):
        if known(component.name, path.name) and not any(path.resolve().is_relative_to(root) for root in roots):
            raise ValueError(f"{component.name}/{path.name} is a link that leaves the base")


def copy(component: Path, to: Path, variant: str | None, who: str) -> None:
    """The known files in a component's folder, links followed within its base; those of a variant under the plain names, as the copy has
    one set of weights.

    Raises:
        OSError, ValueError: as `check_links` and `library_view`.
    """
    check_links(component)
    to.mkdir()
    with library_view(component, who) as folder:
        for path in sorted(p for p in folder.iterdir() if known(component.name, p.name)):
            shutil.copyfile(path, to / path.name)
    for file in sorted(to.glob(f"*.{variant}[.-]*")) if variant else ():
        if file.suffix == ".json":  # the index of several files, which it names
            files.write_text(file, file.read_text(encoding="utf-8").replace(f".{variant}", ""))
        file.replace(to / file.name.replace(f".{variant}", ""))


LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # where the classes of a pipeline's components come from


def pipeline(folder: Path) -> dict[str, Any]:
    """A base's `model_index.json`: components of the known libraries, and plain settings.

    Raises:
        OSError, ValueError: there is none, or it is no such index.
    """
    index = read_json(folder / "model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise ValueError("model_index.json names no class")
    out: dict[str, Any] = {}
    for key, value in index.items():
        plain = isinstance(value, bool | int | float) or value is None or key in ("_class_name", "_diffusers_version")
        ours = isinstance(value, list) and len(value) == 2 and (value == [None, None] or value[0] in LIBRARIES)
        if re.fullmatch(r"\w+", key) and key not in CODE | PLACES and (plain or (ours and isinstance(value[1], str | None))):
            out[key] = value
    return out
