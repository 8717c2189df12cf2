"""What a person types. Importing this imports no torch."""

import json
import os
import sys
from typing import Any

import typer

from finetune import __version__
from finetune.cli import adapter, data, demo, generate, models, recipe, settings, train
from finetune.errors import ConfigError, FinetuneError, plain

app = typer.Typer(
    name="ft",
    help="Fine-tune text-to-image diffusion models. Start with `ft demo`.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("lora")(train.lora)
app.command("dreambooth")(train.dreambooth)
app.command("textual-inversion")(train.textual_inversion)
app.command("ti", hidden=True)(train.textual_inversion)
app.command("generate")(generate.command)
app.command("demo")(demo.command)
app.add_typer(data.app, name="data")
app.add_typer(adapter.app, name="adapter")
app.command("models")(models.command)
app.add_typer(recipe.app, name="recipe")
app.command("config")(settings.command)


def _version(value: bool) -> None:
    if value:
        print(f"ft {__version__}")
        raise typer.Exit


@app.callback()
def root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version.")) -> None:
    """Fine-tune text-to-image diffusion models. Start with `ft demo`."""


def report(error: FinetuneError) -> int:
    """`error: ...` and `hint: ...` on stderr, control characters removed; returns the exit code."""
    if int(os.environ.get("RANK", 0)) == 0 or error.exit_code == 1 or not error.shared:
        print(f"error: {plain(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"hint: {plain(error.hint)}", file=sys.stderr)
    return error.exit_code


def run(arguments: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    try:
        return int(app(args=arguments, standalone_mode=False) or 0)
    except FinetuneError as e:
        return report(e)
    except typer.Exit as e:
        return e.exit_code
    except typer.TyperException as e:
        return report(ConfigError(e.format_message(), "`ft COMMAND --help` lists the flags"))
    except (KeyboardInterrupt, typer.Abort):
        print("error: interrupted", file=sys.stderr)
        return 130
    except MemoryError:
        return report(_out_of_memory("out of memory"))
    except RuntimeError as e:
        # torch.OutOfMemoryError on accelerators; on a CPU a bare RuntimeError
        if type(e).__name__ != "OutOfMemoryError" and "DefaultCPUAllocator" not in str(e):
            raise
        return report(_out_of_memory(str(e).split(". ")[0]))


def _out_of_memory(message: str) -> FinetuneError:
    from finetune.errors import ResourceError

    return ResourceError(message, "--batch 1 with --accumulate, --gradient-checkpointing, or a smaller --resolution")


def emit(value: Any) -> None:
    """One JSON object on stdout: data for scripts."""
    print(json.dumps(value, sort_keys=True))


def main() -> None:
    sys.exit(run())
