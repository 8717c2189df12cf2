"""`ft recipe`: the recipes that ship with the package, and whether one of your own is right."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune import files
from finetune.cli import complete
from finetune.config import recipes
from finetune.errors import ConfigError, FinetuneError, plain

app = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True)
Name = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="name of a recipe, or a file", show_default=False, autocompletion=complete.known_recipes),
]


@app.command("ls")
def ls(json_: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """The recipes that ship with the package."""
    from finetune import cli

    summaries = {name: recipes.recipe_summary(path) for name, path in recipes.shipped_recipes().items()}
    if json_:
        cli.emit({"recipes": summaries})
        return
    for name, about in summaries.items():
        print(f"{name:<18} {about[about.find('(') + 1 : -1]}")


@app.command("show")
def show(recipe: Name) -> None:
    """Print a recipe."""
    from finetune.config import read_yaml

    path = recipes.recipe_path(recipe)
    read_yaml(path)  # refuses what is no recipe
    print(plain(files.read_text(path)), end="")


@app.command("cp")
def cp(
    recipe: Name,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="where to (the current folder)", show_default=False)] = Path("."),
) -> None:
    """Copy a recipe, to change it."""
    from finetune.config import read_yaml

    source = recipes.recipe_path(recipe)
    read_yaml(source)  # refuses what is no recipe
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise ConfigError(f"{target}: is there already", "give another name")
    files.write_bytes(target, source.read_bytes())
    print(target)


@app.command("check")
def check(
    recipe: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="names or files", show_default=False)],
    json_: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Whether every setting exists and fits the base; all mistakes at once."""
    from finetune import cli

    worst, answers = 0, dict[str, Any]()
    for one in recipe:
        try:
            answers[str(one)] = {"ok": True, "about": _check(recipes.recipe_path(one))}
            if not json_:
                print(f"{one}: ok: {answers[str(one)]['about']}")
        except FinetuneError as e:
            print(f"{one}:", file=sys.stderr)
            answers[str(one)] = {"ok": False, "error": cli.error_facts(e)}
            worst = max(worst, cli.report_error(e))
    if json_:
        cli.emit({"recipes": answers})
    if worst:
        raise typer.Exit(worst)


def _check(path: Path) -> str:
    """What the recipe adapts, in one line.

    Raises:
        FinetuneError: a setting that does not exist, has a wrong value, or does not fit the base.
    """
    from finetune.config import read_yaml, resolve
    from finetune.config.precedence import merge_settings

    job = resolve(merge_settings({"data": {"path": "imgs"}}, read_yaml(path)))
    from finetune.training import plan

    side, trains = plan.fit(job)
    what = ", ".join(f"{n:,} parameters of the {p}".replace("the new", "new").replace("_", " ") for p, n in trains.items())
    return f"ft {job.command}, {job.model.base} at {side} pixels, {what}, {job.optim.steps} steps"
