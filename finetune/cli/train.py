"""`ft lora`, `ft dreambooth`, `ft textual-inversion` and `ft vae`: one way to a job, four sets of flags and defaults."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli import complete, flags, hardware, present
from finetune.config import Job, read_yaml, recipes, resolve
from finetune.config.method import trained, usual_rate
from finetune.config.optimizers import OPTIMIZERS
from finetune.config.precedence import Settings, merge_settings, user_config
from finetune.errors import ConfigError, plain, unbroken
from finetune.preparation import automatic
from finetune.text import AUTO

# What a command means before any recipe or flag, and what it leaves to the program where no recipe is given.
DEFAULTS: dict[str, Settings] = {
    "lora": {},
    "dreambooth": {"method": {"kind": "full"}, "run": {"name": "dreambooth"}},
    "textual-inversion": {"method": {"kind": "none"}, "data": {"caption_dropout": 0.0}, "run": {"name": "token"}},
    "vae": {
        "method": {"kind": "decoder"}, "data": {"caption_dropout": 0.0}, "optim": {"ema": 0.999},
        "run": {"name": "vae", "save_dtype": "fp32"},
    },
}  # fmt: skip
AUTOMATIC: dict[str, Settings] = {
    "lora": {"data": {"holdout": AUTO}, "run": {"sample_prompt": AUTO}},
    "dreambooth": {"run": {"sample_prompt": AUTO}},
    "textual-inversion": {"run": {"sample_prompt": AUTO}},
    "vae": {"data": {"holdout": AUTO}},
}
NEEDED = {
    "dreambooth": "--token and --class: missing, as in --token sks --class dog",
    "textual-inversion": "--token: missing, as in --token '<owl>'",
}


def _command(name: str, table: Mapping[str, str], text: str) -> Callable[..., None]:
    def command(
        *,
        recipe: Annotated[
            Path | None,
            typer.Option(
                "--recipe",
                help="name of a recipe (`ft recipe ls`), or a YAML file; flags win over it",
                show_default=False,
                metavar="RECIPE",
                autocompletion=complete.known_recipes,
            ),
        ] = None,
        set_: Annotated[
            list[str] | None, typer.Option("--set", help="any setting: section.key=value", metavar="TEXT", show_default=False)
        ] = None,
        no_holdout: Annotated[
            bool, typer.Option("--no-holdout", help="train on all pictures, and measure nothing", rich_help_panel=flags.PANELS["data"])
        ] = False,
        no_samples: Annotated[bool, typer.Option("--no-samples", help="draw no pictures", rich_help_panel=flags.PANELS["run"])] = False,
        fresh: Annotated[bool, typer.Option("--fresh", help="start over, removing what an earlier run in --out wrote")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan, load no weights")] = False,
        json_: Annotated[bool, typer.Option("--json", help="print one JSON object at the end")] = False,
        **given: Any,
    ) -> None:
        settings = flags.nested_settings(table, given)
        settings = _without(settings, "--no-holdout", "data.holdout", None) if no_holdout else settings
        settings = _without(settings, "--no-samples", "run.sample_prompt", []) if no_samples else settings
        job = make_job(name, settings, recipes.recipe_path(recipe) if recipe else None, set_ or [], flags.names(table))
        if not fresh:
            job = automatic.as_before(job, settings)
        hardware.say_idle_card()
        if dry_run:
            _plan(job, json_)
            return
        from finetune import cli
        from finetune.results import finished

        if summary := None if fresh or "WORLD_SIZE" in os.environ else finished.summary(job):
            print("\n".join(map(unbroken, finished.lines(job, summary))), file=sys.stderr)
            answer = summary.record()
        else:
            from finetune.training import launch

            answer = launch.train(job, fresh)
        if json_ and answer:
            cli.emit(answer)

    command.__doc__ = text
    return flags.with_flags(table, merge_settings(DEFAULTS[name], AUTOMATIC[name]))(command)


def _without(given: Settings, flag: str, setting: str, nothing: object) -> Settings:
    """The flags, with a setting turned off.

    Raises:
        ConfigError: one of them gives it.
    """
    section, key = setting.split(".")
    if key in given.get(section, {}):
        raise ConfigError(f"--{key.replace('_', '-')} and {flag}: give one of them")
    return merge_settings(given, {section: {key: nothing}})


def _plan(job: Job, json_: bool) -> None:
    from finetune import cli
    from finetune.training import plan

    run_plan = plan.plan(job)
    cli.emit(run_plan.facts) if json_ else print(plain(run_plan.text))


lora = _command("lora", flags.LORA, "Train a LoRA on a folder of pictures. The same command again resumes.")
dreambooth = _command(
    "dreambooth",
    flags.DREAMBOOTH,
    "Teach a subject from a few pictures, while pictures of its class keep the class. The same command again resumes.",
)
textual_inversion = _command(
    "textual-inversion", flags.TEXTUAL_INVERSION, "Learn new tokens' embeddings and nothing else. The same command again resumes."
)

vae = _command(
    "vae",
    flags.VAE,
    "Teach the autoencoder's decoder to draw pictures that it holds badly; latents stay as they are. The same command again resumes.",
)


def make_job(name: str, given: Settings, recipe: Path | None, sets: list[str], names: Mapping[str, str]) -> Job:
    """The job of a command line.

    Raises:
        ConfigError: every mistake there is, or settings that belong to another command.
    """
    settings = read_yaml(recipe) if recipe else {}
    given = merge_settings(given, _own_rate(given, settings))

    def resolved(flags: Settings) -> Job:
        job = resolve(flags, recipe, sets, names, DEFAULTS[name] if recipe else merge_settings(DEFAULTS[name], AUTOMATIC[name]))
        if job.command == name:
            return job
        if needed := NEEDED.get(name) if job.command == "lora" else None:
            raise ConfigError(needed)
        raise ConfigError(f"these settings are those of `ft {job.command}`, not of `ft {name}`", f"ft {job.command} --help")

    return _with_base(resolved, given, settings, sets)


def any_job(given: Settings, recipe: Path | None, sets: list[str], names: Mapping[str, str]) -> Job:
    """The job that flags and a recipe of any command add up to, as far as its data go.

    Raises:
        ConfigError: every mistake there is.
    """
    path = recipes.recipe_path(recipe) if recipe else None
    usual = {} if path else {"data": AUTOMATIC["lora"]["data"]}  # as a run of them without a recipe holds out
    return _with_base(lambda flags: resolve(flags, path, sets, names, usual), given, read_yaml(path) if path else {}, sets)


def _with_base(resolved: Callable[[Settings], Job], given: Settings, settings: Settings, sets: list[str]) -> Job:
    """The job; where nothing names a base, says in one line which is used and why."""
    job = resolved(given)
    named = any("base" in layer.get("model", {}) for layer in (given, settings)) or any(s.startswith("model.base=") for s in sets)
    present.of_job(job, named)
    if named:
        return job
    from finetune.families.source import default_base

    mine = read_yaml(user_config()).get("model", {}).get("base") if user_config().exists() else None
    base, line = default_base(mine, accelerator=hardware.accelerator())
    print(line, file=sys.stderr)
    return resolved(merge_settings(given, {"model": {"base": base}}))


def _own_rate(given: Settings, recipe: Settings) -> Settings:
    """The rate of what the flags train, where a recipe's stands for another base, adapter or optimizer, or for all weights: as many times
    the usual one as the recipe's is of its own, and the usual one of an optimizer that finds rates itself. Says so."""
    try:
        rate = float(recipe["optim"]["lr"])
    except (KeyError, TypeError, ValueError):  # none, or what is refused later
        return {}
    if given.get("optim", {}).get("lr"):
        return {}
    old, new = trained(recipe), trained(merge_settings(recipe, given))
    if usual_rate(*old) == usual_rate(*new):
        return {}
    alone = any(name in OPTIMIZERS and OPTIMIZERS[name].one_rate for name in (old[1], new[1]))
    new_rate = usual_rate(*new) if alone else float(f"{rate * usual_rate(*new) / usual_rate(*old):.3g}")
    what = f"{' with '.join(new[:2])} on {new[2]}"
    print(f"the recipe's rate {rate:g} becomes {new_rate:g} for {what}; --lr chooses another", file=sys.stderr)
    return {"optim": {"lr": new_rate}}
