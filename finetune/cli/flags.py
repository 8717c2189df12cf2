"""Flags generated from the settings: one table of names, one place for help, types checked where settings are checked."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from finetune.config.load import Settings, merge, section_model

# Flag -> setting. Everything else is reached with a recipe or --set.
FLAGS = {
    "--data": "data.path",
    "--base": "model.base",
    "--variant": "model.variant",
    "--allow-pickle": "model.allow_pickle",
    "--rank": "method.rank",
    "--alpha": "method.alpha",
    "--dropout": "method.dropout",
    "--targets": "method.targets",
    "--steps": "optim.steps",
    "--batch": "optim.batch",
    "--accumulate": "optim.accumulate",
    "--lr": "optim.lr",
    "--schedule": "optim.schedule",
    "--warmup": "optim.warmup",
    "--ema": "optim.ema",
    "--min-snr": "objective.min_snr_gamma",
    "--resolution": "data.resolution",
    "--caption": "data.caption",
    "--trigger": "data.trigger",
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
    "--tensorboard": "run.tensorboard",
    "--processes": "run.processes",
}
NAMES = {setting: flag for flag, setting in FLAGS.items()}


def _option(flag: str, setting: str) -> inspect.Parameter:
    section, key = setting.split(".")
    info = section_model(section).model_fields[key]
    name = flag.removeprefix("--").replace("-", "_")
    default = "" if info.is_required() or info.default in (None, ()) or isinstance(info.default, bool) else f" [{info.default}]"
    text = (info.description or "") + default
    if info.annotation is bool:
        kind: Any = Annotated[bool | None, typer.Option(flag, help=text, show_default=False)]
    elif setting == "run.sample_prompt":
        kind = Annotated[list[str] | None, typer.Option(flag, help=text, show_default=False, metavar="TEXT")]
    else:
        # Text here, typed in `config`: so that every mistake of a command line is told at once.
        kind = Annotated[str | None, typer.Option(flag, help=text, show_default=False, metavar=_metavar(info.annotation))]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    text = str(annotation)
    for word, shown in (("Path", "PATH"), ("float", "NUMBER"), ("int", "N")):
        if word in text:
            return shown
    return "TEXT"


def with_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds every flag of FLAGS to a command that takes `**flags`."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    command.__signature__ = inspect.Signature([_option(f, s) for f, s in FLAGS.items()] + own)  # type: ignore[attr-defined]
    return command


def settings(given: dict[str, Any]) -> Settings:
    """The flags that were given, as nested settings."""
    out: Settings = {}
    for flag, setting in FLAGS.items():
        value = given.get(flag.removeprefix("--").replace("-", "_"))
        if value not in (None, []):
            section, key = setting.split(".")
            out = merge(out, {section: {key: value}})
    return out
