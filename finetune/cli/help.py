"""How a command line is read and explained: other tools' words, unknown flags, and help in groups with examples."""

import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import typer
from typer.core import TyperCommand, TyperGroup

from finetune.cli import flags, streams, words
from finetune.cli.examples import EXAMPLES
from finetune.errors import NEXT, ConfigError

CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 10_000,  # as wide as the terminal
    "token_normalize_func": lambda name: name.replace("_", "-"),
}
# Command -> flag -> setting: those whose flags are settings.
TABLES = {
    "lora": flags.LORA,
    "dreambooth": flags.DREAMBOOTH,
    "textual-inversion": flags.TEXTUAL_INVERSION,
    "ti": flags.TEXTUAL_INVERSION,
    "vae": flags.VAE,
    "data check": flags.DATA,
    "data preview": flags.DATA,
    "data cache": flags.DATA,
}
# Command -> the group of a flag, where it is no setting's, whose group stands in `flags`.
PANELS = {
    "generate": dict.fromkeys(("--base", "--adapter", "--embedding"), "What draws")
    | dict.fromkeys(("--prompt", "--negative", "--count", "--seed", "--resolution", "--width", "--height"), "What is drawn")
    | dict.fromkeys(("--scheduler", "--steps", "--guidance", "--batch"), "How it is drawn")
    | dict.fromkeys(("--out", "--grid"), "What is written"),
}
COLUMN = 28  # of flags, in characters
SENTENCE = 300  # characters of a command's first sentence, at most
# What typer calls a value -> what the flags of settings call it.
VALUES = {"<int range>": "N", "<int>": "N", "<float range>": "NUMBER", "<float>": "NUMBER", "<path>": "PATH", "<list[path]>": "PATH"}
VALUES |= {"<str>": "TEXT", "<list[str]>": "TEXT"}


class Formatter(Protocol):
    """What is used of the help formatter that typer hands over."""

    def write(self, string: str) -> None: ...
    def write_dl(self, rows: Sequence[tuple[str, str]], *, col_max: int) -> None: ...
    def section(self, name: str) -> AbstractContextManager[None]: ...


class Call(Protocol):
    """What is used of typer's context: a command by its name, and what it is called through."""

    @property
    def parent(self) -> "Call | None": ...
    @property
    def info_name(self) -> str | None: ...


def path(ctx: Call) -> str:
    """The words that call a command, without the program's name."""
    names = []
    while ctx.parent is not None:
        names.append(str(ctx.info_name))
        ctx = ctx.parent
    return " ".join(reversed(names))


def hint(error: typer.TyperException) -> str:
    """Where to look after what typer says is wrong with a command line."""
    context = getattr(error, "ctx", None)
    command = path(context) if context else ""
    return f"`ft {command} --help` lists what there is" if command else "`ft --help` lists the commands"


class Command(TyperCommand):
    """Understands other tools' words, and says all that it does not understand at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known: set[str] = set()
        for param in self.get_params(ctx):
            known |= {name for name in param.opts if name.startswith("--")}
        command = path(ctx)
        mine = words.translated(args, known, _meant(command))
        try:
            return super().parse_args(ctx, list(mine))
        except typer.TyperException as e:
            e.ctx = ctx  # type: ignore[attr-defined]  # typer leaves it out of some
            if type(e).__name__ != "NoSuchOption" or (unknown := _unknown(mine, known)) is None:
                raise
            raise ConfigError(unknown, f"`ft {command} --help` lists the flags, `ft config` the settings") from e

    def format_options(self, ctx: Any, formatter: Formatter) -> None:
        _options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Formatter) -> None:
        _examples(ctx, formatter)


class CommandGroup(TyperGroup):
    """Lists its commands in groups."""

    def format_options(self, ctx: Any, formatter: Formatter) -> None:
        self.format_commands(ctx, formatter)
        _options(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Formatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command and not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                panels.setdefault(panel, []).append((name, command.get_short_help_str(SENTENCE)))
        _write(formatter, panels)

    def format_epilog(self, ctx: Any, formatter: Formatter) -> None:
        _examples(ctx, formatter)


def _meant(command: str) -> dict[str, str]:
    """Other tools' words that a command understands, with ours."""
    if command == "generate":
        return words.words_of_drawing()
    return words.words_of_settings(TABLES[command]) if command in TABLES else {}


def _unknown(arguments: list[str], known: set[str]) -> str | None:
    """All flags of a command line that are not the command's, other tools' words with ours; None where there are no such words."""
    own_flags = {words.bare_flag(flag) for flag in known}
    names = dict.fromkeys(a.partition("=")[0] for a in arguments if a.startswith("--"))
    answers = {name: words.answer(name) for name in names if words.bare_flag(name) not in own_flags}
    if not any(answers.values()):
        return None
    return NEXT.join(f"{name}: {answer or 'no such flag'}" for name, answer in answers.items())


def _options(command: Any, ctx: Any, formatter: Formatter) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            first = re.sub("<[^>]*>", lambda value: VALUES.get(value[0].lower(), value[0]), record[0])
            panels.setdefault(_panel(param, path(ctx)), []).append((first, record[1]))
    _write(formatter, panels)


def _panel(param: Any, command: str) -> str:
    """The group that an option or argument of a command is listed in."""
    usual = "Arguments" if param.param_type_name == "argument" else "Options"
    return getattr(param, "rich_help_panel", None) or PANELS.get(command, {}).get(param.opts[0], usual)


def _write(formatter: Formatter, panels: dict[str, list[tuple[str, str]]]) -> None:
    """Groups of two columns, whose second ones stand below each other."""
    widths: list[int] = []
    for rows in panels.values():
        widths += [len(first) for first, _ in rows]
    width = min(COLUMN, max(widths))
    for name, rows in panels.items():
        with _section(formatter, name):
            formatter.write_dl([(rows[0][0].ljust(width), rows[0][1]), *rows[1:]], col_max=COLUMN)


def _examples(ctx: Call, formatter: Formatter) -> None:
    lines = EXAMPLES.get(path(ctx), ())
    if lines:
        with _section(formatter, "Examples"):
            for line in lines:
                formatter.write(f"  {line}\n")


def _section(formatter: Formatter, name: str) -> AbstractContextManager[None]:
    return formatter.section(streams.painted(name, "1", sys.stdout))
