"""What a person types. Importing this imports no torch."""

import gc
import io
import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune import __version__, files, libraries
from finetune.cli import adapter, cache, clean, data, demo, generate, help, models, recipe, settings, streams, train
from finetune.errors import ConfigError, FinetuneError, Interruption, ResourceError, line, message
from finetune.training import signals

SCHEMA_VERSION = 1  # of the object that --json prints: docs/json.md

app = typer.Typer(
    name="ft",
    help="Fine-tune text-to-image diffusion models. Start with `ft demo`.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=help.CONTEXT,
)
TRAIN, LOOK, KNOW = "Train", "Draw and look", "Know and keep house"
app.command("lora", rich_help_panel=TRAIN)(train.lora)
app.command("dreambooth", rich_help_panel=TRAIN)(train.dreambooth)
app.command("textual-inversion", rich_help_panel=TRAIN)(train.textual_inversion)
app.command("vae", rich_help_panel=TRAIN)(train.vae)
app.command("ti", hidden=True)(train.textual_inversion)
app.command("demo", rich_help_panel=TRAIN)(demo.command)
app.command("generate", rich_help_panel=LOOK)(generate.command)
app.add_typer(data.app, name="data", rich_help_panel=LOOK)
app.add_typer(adapter.app, name="adapter", rich_help_panel=LOOK)
app.command("models", rich_help_panel=KNOW)(models.command)
app.add_typer(recipe.app, name="recipe", rich_help_panel=KNOW)
app.add_typer(cache.app, name="cache", rich_help_panel=KNOW)
app.command("clean", rich_help_panel=KNOW)(clean.command)
app.command("config", rich_help_panel=KNOW)(settings.command)


def _version(value: bool) -> None:
    if value:
        print(f"ft {__version__}")
        raise typer.Exit


@app.command("version", rich_help_panel=KNOW)
def version(json_: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False) -> None:
    """Print the version."""
    emit({"version": __version__}) if json_ else print(f"ft {__version__}")


@app.command("help", rich_help_panel=KNOW)
def explain(command: Annotated[list[str] | None, typer.Argument(metavar="COMMAND", show_default=False)] = None) -> None:
    """Print the help of a command, or this list."""
    app(args=[*(command or []), "--help"], standalone_mode=False)


for group in (app, data.app, adapter.app, recipe.app, cache.app):
    group.info.cls = help.CommandGroup
    for one in group.registered_commands:
        one.cls = help.Command


@app.callback()
def root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version.")) -> None:
    """Fine-tune text-to-image diffusion models. Start with `ft demo`."""


def report_error(error: FinetuneError) -> int:
    """`error: ...` and `hint: ...` on stderr, control characters removed; returns the exit code."""
    if _first() or error.exit_code == 1 or not error.shared:
        print(f"{streams.painted('error:', '1;31', sys.stderr)} {message(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"{streams.painted('hint:', '36', sys.stderr)} {message(error.hint)}", file=sys.stderr)
    return error.exit_code


def _first() -> bool:
    """Whether this is the first of a run's processes, which speaks for all."""
    return int(os.environ.get("RANK", 0)) == 0


def run(arguments: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code; with --json, stdout gets one object, whatever happens."""
    words = sys.argv[1:] if arguments is None else arguments
    _answer.clear()
    try:
        error = None
        code = int(_app(words) or 0)
    except FinetuneError as e:
        error, code = e, report_error(e)
    except Exception as e:
        if _asks_json(words):  # a mistake of ours: the traceback is on stderr all the same
            _print_answer(1, FinetuneError(f"{type(e).__name__}: {e}", "please report this, with the traceback"))
        raise
    if _asks_json(words) and _first() and (_answer or error):
        _print_answer(code, error)
    return code


def _app(words: list[str]) -> Any:
    """The exit code of a command line; what typer, the system and torch raise becomes ours.

    Raises:
        FinetuneError: what the user can mend.
    """
    try:
        check_decoded(words)
        return app(args=words, standalone_mode=False)
    except typer.Exit as e:
        return e.exit_code
    except typer.TyperException as e:
        if type(e).__name__ == "NoArgsIsHelpError":
            print(e.format_message())
            return ConfigError.exit_code
        raise ConfigError(e.format_message(), help.hint(e)) from e
    except signals.Interrupted as e:
        raise Interruption(e.number) from None
    except (KeyboardInterrupt, typer.Abort):
        raise Interruption(signal.SIGINT) from None
    except MemoryError as e:
        raise _out_of_memory("out of memory") from e
    except OSError as e:
        if not isinstance(e.filename, str | bytes):  # no path is at fault
            if _nowhere():
                raise ResourceError("the folder that this runs in is gone", "cd to one that is there") from e
            raise
        raise files.refused(e, Path(os.fsdecode(e.filename))) from e
    except RuntimeError as e:
        # torch.OutOfMemoryError on accelerators; on a CPU a bare RuntimeError
        if type(e).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(e):
            raise _out_of_memory(str(e).split(". ")[0]) from e
        if any(words in str(e) for words in ("can't start new thread", "unable to mmap", "unable to open file")):
            raise ResourceError(line(str(e)), "the system gives no more threads, files or memory: `ulimit -a` shows the limits") from e
        raise


def _nowhere() -> bool:
    try:
        return not os.getcwd()
    except OSError:
        return True


def _out_of_memory(message: str) -> FinetuneError:
    return ResourceError(message, "--batch 1 with --accumulate, --gradient-checkpointing, or a smaller --resolution")


def check_decoded(words: list[str]) -> None:
    """Raises:
    ConfigError: a word's bytes are no text: no tokenizer, database or record of a run can hold it.
    """
    for before, word in zip(["", *words], words, strict=False):
        try:
            word.encode()
        except UnicodeEncodeError as e:
            shown = word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            name = f"{before} " if before.startswith("--") and "=" not in before else ""
            raise ConfigError(f"{name}{shown}: is not UTF-8", "write it in UTF-8; of a file or folder, rename it") from e


# What a command answers, for --json: `run` prints it, once, with what went wrong.
_answer: dict[str, Any] = {}


def emit(value: Mapping[str, Any]) -> None:
    """Data for scripts: part of the one JSON object on stdout."""
    _answer.update(value)


def _asks_json(words: list[str]) -> bool:
    return "--json" in words


def error_facts(error: FinetuneError) -> dict[str, Any]:
    """What went wrong, for scripts."""
    return {"code": error.code, "message": message(error.message), "hint": message(error.hint) or None, "exit_code": error.exit_code}


def _print_answer(code: int, error: FinetuneError | None) -> None:
    facts = {"schema_version": SCHEMA_VERSION, "exit_code": code, **_answer}
    if error:
        facts["error"] = error_facts(error)
    print(json.dumps(_finite(facts), sort_keys=True, allow_nan=False))


def _finite(value: object) -> object:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or file of another encoding gets \u2026 for what it cannot show
            stream.reconfigure(errors="backslashreplace")
    streams.steady()
    libraries.set_aside("bitsandbytes")
    libraries.importing()
    try:
        with signals.watch():
            code = run()
        if error := streams.lost(sys.stdout):
            code = code or report_error(ResourceError(f"stdout: {error.strerror}", "what it should hold is not all there"))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python ends, there is nothing left to stop
        gc.freeze()  # else every object is walked once more, to free what the system frees anyway
    sys.exit(code)
