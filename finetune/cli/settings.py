"""`ft config`: every setting with its default, what the user's own configuration makes of it, and its help."""

import json
from typing import Annotated, Any

import typer

from finetune.errors import plain


def command(
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of a recipe")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """List every setting that a recipe or --set can reach, and what your own configuration says of them."""
    from finetune import cli
    from finetune.config.job import Job
    from finetune.config.precedence import user_config

    if schema:
        print(json.dumps(Job.model_json_schema(), sort_keys=True))
        return
    path, rows = user_config(), _settings()
    if json_:
        cli.emit({"user_config": str(path), "user_config_exists": path.exists(), "settings": rows})
        return
    print(f"# your configuration: {path}" + ("" if path.exists() else ", which is not there; a recipe at that place holds for every run"))
    for name, row in rows.items():
        default = "required" if row["required"] else row["default"]
        shown = f"{row['yours']!s} (yours; else {default})" if "yours" in row else default
        print(plain(f"{name:<30} {shown!s:<12} {row['help']}"))


def _settings() -> dict[str, dict[str, Any]]:
    """Every setting: its default, the user's own value where there is one, and its help.

    Raises:
        ConfigError: the user's configuration holds what is no setting, or a wrong value.
    """
    from finetune.config.job import Job
    from finetune.config.precedence import own_settings, section_model

    mine, out = own_settings(), {}
    for section in Job.model_fields:
        for key, info in section_model(section).model_fields.items():
            default = None if info.is_required() else info.get_default()
            row = {"default": default, "required": info.is_required(), "help": info.description or ""}
            yours = mine.get(section) or {}
            out[f"{section}.{key}"] = row | ({"yours": yours[key]} if key in yours else {})
    return out
