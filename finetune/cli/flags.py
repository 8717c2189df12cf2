"""Flags generated from the settings: one table of names, one place for help, types checked where settings are checked."""

import inspect
import keyword
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from finetune.cli import complete
from finetune.config import ADAPTERS
from finetune.config.method import EMBEDDED, usual_rate
from finetune.config.precedence import Settings, merge_settings, section_model
from finetune.errors import ConfigError, line

# Flag -> setting. Everything else is reached with a recipe or --set.
_MODEL = {"--data": "data.path", "--base": "model.base"}
_ADAPTER = {"--rank": "method.rank", "--alpha": "method.alpha", "--targets": "method.targets"}
_TOKENS = {"--vectors": "method.vectors", "--init-word": "method.init_word"}
_COMMON = {
    "--steps": "optim.steps",
    "--batch": "optim.batch",
    "--accumulate": "optim.accumulate",
    "--lr": "optim.lr",
    "--optimizer": "optim.optimizer",
    "--schedule": "optim.schedule",
    "--warmup": "optim.warmup",
    "--ema": "optim.ema",
    "--weighting": "objective.weighting",
    "--resolution": "data.resolution",
    "--caption": "data.caption",
    "--caption-dropout": "data.caption_dropout",
    "--holdout": "data.holdout",
    "--seed": "run.seed",
    "--precision": "run.precision",
    "--gradient-checkpointing": "run.gradient_checkpointing",
    "--out": "run.out",
    "--name": "run.name",
    "--checkpoint-every": "run.checkpoint_every",
    "--sample-prompt": "run.sample_prompt",
    "--sample-every": "run.sample_every",
    "--format": "run.format",
    "--processes": "run.processes",
}
LORA = {
    **_MODEL, "--vae": "model.vae", "--variant": "model.variant", "--allow-pickle": "model.allow_pickle", "--adapter": "method.kind",
    **_ADAPTER, "--trigger": "data.trigger", "--new-token": "method.new_tokens", **_TOKENS, **_COMMON,
}  # fmt: skip
DREAMBOOTH = {
    **_MODEL, "--vae": "model.vae", "--token": "subject.token", "--class": "subject.class_word", "--class-data": "subject.class_data",
    "--class-count": "subject.class_count", "--prior-weight": "subject.prior_weight", "--adapter": "method.kind", **_ADAPTER,
    "--train-text-encoder": "method.text_encoder", "--text-encoder-lr": "method.text_encoder_lr", **_COMMON,
}  # fmt: skip
VAE = {
    **_MODEL, "--vae": "model.vae", "--variant": "model.variant", "--allow-pickle": "model.allow_pickle", "--mask": "data.mask",
    "--flip": "data.flip", **_COMMON,
}  # fmt: skip
TEXTUAL_INVERSION = {**_MODEL, "--vae": "model.vae", "--token": "method.new_tokens", **_TOKENS, "--template": "data.template", **_COMMON}
DATA = {
    **_MODEL, "--trigger": "data.trigger", "--caption": "data.caption", "--resolution": "data.resolution", "--holdout": "data.holdout",
    "--batch": "optim.batch", "--mask": "data.mask", "--flip": "data.flip",
}  # fmt: skip
Pictures = Annotated[
    list[str] | None, typer.Argument(metavar="PICTURES", help="the same as --data: where the pictures are", show_default=False)
]
del TEXTUAL_INVERSION["--format"], DREAMBOOTH["--sample-every"]
for _flag in ("--weighting", "--caption", "--caption-dropout", "--sample-prompt", "--sample-every", "--precision", "--format"):
    del VAE[_flag]  # which a decoder, that sees latents and pictures alone, has no use for
# By --help, which lists 40 at most; `ft config` does.
UNLISTED = {"--vae", "--variant", "--allow-pickle", "--checkpoint-every", "--processes"}
# The groups of --help, by section of the setting.
PANELS = {
    "data": "Pictures",
    "model": "Base",
    "subject": "Subject",
    "method": "What trains",
    "objective": "How it learns",
    "optim": "How it learns",
    "run": "The run and what it leaves",
}
COMPLETE = {"--base": complete.bases, "--vae": complete.autoencoders, "--adapter": complete.kinds}


def _name(flag: str) -> str:
    name = flag.removeprefix("--").replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def _default(section: str, key: str, defaults: Settings) -> str:
    """What a setting is where nobody says, in brackets; `defaults` are the command's defaults, which win over the setting's."""
    kind = defaults.get("method", {}).get("kind", "lora")
    if (section, key) == ("optim", "lr"):
        return f" [{usual_rate(kind, 'adamw', ''):g}; on {EMBEDDED} {usual_rate(kind, 'adamw', EMBEDDED):g}]"
    if (section, key) == ("model", "base"):
        return f" [$FT_BASE, your configuration's, or {EMBEDDED}; sd15 with an accelerator]"
    if (section, key, kind) == ("method", "kind", "full"):
        return " [all weights train]"
    info = section_model(section).model_fields[key]
    default = defaults.get(section, {}).get(key, None if info.is_required() else info.default)
    default = " ".join(default) if isinstance(default, tuple | list) else default
    return "" if default in (None, "") or isinstance(default, bool) else f" [{default}]"


def _option(flag: str, setting: str, defaults: Settings) -> inspect.Parameter:
    section, key = setting.split(".")
    info = section_model(section).model_fields[key]
    name = _name(flag)
    text = (info.description or "") + _default(section, key, defaults)
    more: dict[str, Any] = {"rich_help_panel": PANELS[section], "hidden": flag in UNLISTED, "show_default": False}
    if flag == "--adapter":
        about = "; ".join(f"{name}: {row.about}" for name, row in ADAPTERS.items())
        text = f"type of the adapter{_default(section, key, defaults)}. {about}"
        metavar = "|".join(ADAPTERS)
    else:
        metavar = "PATH" if flag == "--data" else _metavar(info.annotation)
    if info.annotation is bool:
        kind: Any = Annotated[bool | None, typer.Option(flag, help=text, **more)]
    elif str(info.annotation).startswith("tuple[") and "..." in str(info.annotation):
        kind = Annotated[list[str] | None, typer.Option(flag, help=text, metavar="TEXT", **more)]
    else:
        # Text here, typed in `config`: so that every mistake of a command line is told at once.
        more["autocompletion"] = COMPLETE.get(flag) or (complete.words(metavar.split("|")) if "|" in metavar else None)
        kind = Annotated[str | None, typer.Option(flag, help=text, metavar=metavar, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    text = str(annotation)
    for word, shown in (("Path", "PATH"), ("float", "NUMBER"), ("int", "N")):
        if word in text:
            return shown
    return "TEXT"


def with_flags(table: Mapping[str, str], defaults: Settings | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds every flag of a table to a command that takes `**given`, and whose own defaults are told in the help; and where there is
    --data, the place of the pictures as a word alone."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        rest = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        options = [_option(f, s, defaults or {}) for f, s in table.items()]
        if "--data" in table:
            options.insert(0, inspect.Parameter("pictures", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Pictures))
        command.__signature__ = inspect.Signature(options + rest)  # type: ignore[attr-defined]
        return command

    return add


def nested_settings(table: Mapping[str, str], given: dict[str, Any]) -> Settings:
    """The flags that were given, as nested settings.

    Raises:
        ConfigError: there are two places of pictures.
    """
    out: Settings = {}
    if "--data" in table:
        given = given | {"data": one_place(given.get("pictures"), given.get("data"))}
    for flag, setting in table.items():
        value = given.get(_name(flag))
        if value not in (None, []):
            section, key = setting.split(".")
            out = merge_settings(out, {section: {key: value}})
    return out


def one_place(words: list[str] | None, flag: str | None) -> str | None:
    """Where the pictures are, of what stands alone and what stands behind --data.

    Raises:
        ConfigError: there are two places.
    """
    if not words:
        return flag
    if len(words) > 1:
        hint = "give the folder, not its pictures; data.sources in a recipe takes several"
        raise ConfigError(f"{line(words[0], 60)} and {line(words[1], 60)}: one place of pictures is taken", hint)
    if flag is not None and Path(flag) != Path(words[0]):
        raise ConfigError(f"--data {line(flag, 60)} and {line(words[0], 60)}: two places of pictures", "leave one of them out")
    return words[0]


def names(table: Mapping[str, str]) -> dict[str, str]:
    """Setting -> flag, for messages."""
    return {setting: flag for flag, setting in table.items()}
