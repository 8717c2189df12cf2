"""Precedence (defaults < user config < recipe < flags), strict keys with "did you mean", and all mistakes at once."""

import difflib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import platformdirs
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from finetune import files
from finetune.config.data import Source
from finetune.config.job import Job
from finetune.config.yaml import MOST_LETTERS, parsed
from finetune.errors import NEXT, ConfigError, line
from finetune.text import flaw

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MOST_MISTAKES = 20  # that are said at once
Settings = dict[str, Any]  # nested: {"optim": {"lr": 1e-4}}


def user_config() -> Path:
    """The user's own settings, there or not."""
    if chosen := os.environ.get("FT_CONFIG"):
        return Path(chosen)
    try:
        return Path(platformdirs.user_config_dir("finetune", appauthor=False)) / "config.yaml"
    except RuntimeError:  # a user without a home has none
        return Path(os.devnull) / "config.yaml"


def own_settings() -> Settings:
    """What the user's configuration says, checked as far as it goes alone; nothing where there is none.

    Raises:
        ConfigError: it is not readable, or holds what is no setting, or a wrong value.
    """
    path = user_config()
    settings = read_yaml(path) if path.exists() else {}
    try:
        Job.model_validate(merge_settings({"data": {"path": "."}}, settings))
    except ValidationError as e:  # what contradicts what may change with the flags
        wrong = [_describe(error, {}) for error in e.errors() if len(error["loc"]) > 1 or error["type"] != "value_error"]
        if wrong:
            raise ConfigError(f"{path}: " + NEXT.join(wrong), "`ft config --schema` has every setting") from e
    return settings


def read_yaml(path: Path) -> Settings:
    """A YAML mapping.

    Raises:
        ConfigError: no such file, not UTF-8, not YAML, a key twice, or no mapping.
    """
    try:
        with files.opened(path) as f:
            value = parsed(f.read(4 * MOST_LETTERS + 1).decode())
    except FileNotFoundError as e:
        raise ConfigError(f"{path}: no such file", "give the path of a recipe, such as recipes/sd15-style.yaml") from e
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: not a readable YAML file: {line(str(getattr(e, 'strerror', None) or e), 400)}") from e
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected sections such as `optim:`, found {type(value).__name__}")
    return value


def merge_settings(*layers: Mapping[str, Any]) -> Settings:
    """Later layers win, key by key."""
    out: Settings = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merge_settings(out[key], value) if both else value
    return out


def assignments(pairs: Iterable[str]) -> Settings:
    """`section.key=value` words as nested settings; the value is read as YAML."""
    out: Settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise ConfigError(f"--set {pair}: expected section.key=value", "for example --set optim.weight_decay=0.1")
        try:
            value = parsed(text)
        except ValueError as e:
            raise ConfigError(f"--set {pair}: the value is not YAML") from e
        out = merge_settings(out, {section: {key: value}})
    return out


def resolve(
    flags: Mapping[str, Any],
    recipe: Path | None = None,
    sets: Iterable[str] = (),
    names: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Job:
    """The Job that a command's `defaults`, user config, `recipe`, then flags and `--set` add up to; `names` maps settings to flags for
    messages.

    Raises:
        ConfigError: every mistake there is, in one message.
    """
    user = user_config()
    written = {user: read_yaml(user)} if user.exists() else {}
    if recipe:
        written[recipe] = read_yaml(recipe)
    given = merge_settings(assignments(sets), flags)
    if not _permits(given) and (path := next((p for p, settings in written.items() if _permits(settings)), None)):
        raise ConfigError(f"{path}: model.allow_pickle is a permission, which no file gives", "--allow-pickle gives it")
    return parse(merge_settings(defaults or {}, *written.values(), given), names)


def _permits(settings: Settings) -> bool:
    model = settings.get("model")
    return isinstance(model, Mapping) and bool(model.get("allow_pickle"))


def parse(settings: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Job:
    if wrong := [(names or {}).get(name, name) for name in dict.fromkeys(_no_text(settings))]:
        hint = "no file's name and no caption can hold it: write another"
        raise ConfigError(NEXT.join(f"{name}: holds a null or half a character" for name in wrong), hint)
    try:
        return Job.model_validate(settings)
    except ValidationError as e:
        said = [line(text, 400) for error in e.errors() for text in _describe(error, names or {}).split(NEXT)]
        lines = said[:MOST_MISTAKES] + ([f"and {len(said) - MOST_MISTAKES} more"] if len(said) > MOST_MISTAKES else [])
        raise ConfigError(NEXT.join(lines), "`ft COMMAND --help` lists the flags, `ft config` every setting") from e


def _no_text(value: object, *name: str) -> Iterator[str]:
    """The settings, section.key, that hold what is no text: YAML and JSON can write it, no system and no tokenizer reads it."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _no_text(one, *name, str(key))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _no_text(one, *name)
    if flaw("".join(name[2:]) + (value if isinstance(value, str) else "")):
        yield ".".join(name[:2])


def _describe(error: "ErrorDetails", names: Mapping[str, str]) -> str:
    location = [str(part) for part in error["loc"]]
    setting = ".".join(location[:2])
    shown = names.get(setting, setting) or "settings"
    if error["type"] == "extra_forbidden":
        return f"{'.'.join(location)}: no such setting{_suggestion(location)}"
    if error["type"] == "missing":
        return f"{shown}: missing" if len(location) > 1 or shown != "data" else "--data: missing"
    reason = error["msg"].removeprefix("Value error, ")
    if not location or (len(location) == 1 and error["type"] == "value_error"):  # of several settings together
        return str(reason)
    whole = f"{shown}: {reason[0].lower()}{reason[1:]}"
    return whole if ";" in reason else f"{whole}, not {error['input']!r}"  # one with a remedy behind it names what is wrong itself


def _suggestion(location: list[str]) -> str:
    known: list[str] = list(Job.model_fields)
    if location[:2] == ["data", "sources"]:
        known = list(Source.model_fields)
    elif len(location) > 1 and location[0] in Job.model_fields:
        known = list(section_model(location[0]).model_fields)
    close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {'.'.join([*location[:-1], close[0]])}?"
    places = [f"{s}.{location[-1]}" for s in Job.model_fields if location[-1] in section_model(s).model_fields]
    return f"; did you mean {places[0]}?" if places else f"; known: {', '.join(known)}"


def section_model(name: str) -> type[BaseModel]:
    annotation = Job.model_fields[name].annotation
    model = next((a for a in [annotation, *get_args(annotation)] if isinstance(a, type) and issubclass(a, BaseModel)), None)
    assert model is not None  # noqa: S101  every field of Job is a section
    return model


def dump(job: Job) -> str:
    """The Job as YAML, every setting written out."""
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.dump(job.model_dump(mode="json"), text)
    return text.getvalue()
