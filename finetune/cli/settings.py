"""`ft config`: every setting with its default and its help."""

import json
from typing import Annotated

import typer


def command(schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of a recipe")] = False) -> None:
    """List every setting that a recipe or --set can reach."""
    from finetune.config.job import Job
    from finetune.config.load import section_model

    if schema:
        print(json.dumps(Job.model_json_schema(), sort_keys=True))
        return
    for section in Job.model_fields:
        for key, info in section_model(section).model_fields.items():
            default = "required" if info.is_required() else info.default
            print(f"{f'{section}.{key}':<30} {default!s:<12} {info.description or ''}")
