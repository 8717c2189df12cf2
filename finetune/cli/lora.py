"""`ft lora`: teach a style or a subject to the attention layers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli import flags
from finetune.config import Job, read_yaml, recipes, resolve
from finetune.config.load import Settings, merge, user_config
from finetune.errors import plain


def command(
    *,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="name of a recipe (`ft recipe ls`), or a YAML file; flags win over it", show_default=False),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="any setting: section.key=value", metavar="TEXT", show_default=False)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="start over, removing what an earlier run in --out wrote")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan, load no weights")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON object at the end")] = False,
    **given: Any,
) -> None:
    """Train a LoRA on a folder of pictures. The same command again resumes."""
    from finetune import cli

    job = make_job(flags.settings(given), recipes.find(recipe) if recipe else None, set_ or [])
    if dry_run:
        from finetune.training import plan

        made = plan.plan(job)
        cli.emit(made.facts) if json_ else print(plain(made.text))
        return
    from finetune.training import launch

    summary = launch.train(job, fresh)
    if json_ and summary:
        cli.emit(summary)


command = flags.with_flags(command)


def make_job(given: Settings, recipe: Path | None, sets: list[str]) -> Job:
    """The job of a command line; where nothing names a base, says in one line which is used and why."""
    job = resolve(given, recipe, sets, flags.NAMES)
    if any("base" in layer.get("model", {}) for layer in (given, read_yaml(recipe) if recipe else {})) or any(
        s.startswith("model.base=") for s in sets
    ):
        return job
    import sys

    from finetune.families.source import default_base

    mine = read_yaml(user_config()).get("model", {}).get("base") if user_config().exists() else None
    base, line = default_base(mine, accelerator=_accelerator())
    print(line, file=sys.stderr)
    return resolve(merge(given, {"model": {"base": base}}), recipe, sets, flags.NAMES)


def _accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()
