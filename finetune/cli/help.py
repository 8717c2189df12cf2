"""How a command line is read and explained: other tools' words, unknown flags, and help in groups with examples."""

import re
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from finetune.cli import flags, streams, words
from finetune.cli.examples import EXAMPLES
from finetune.errors import ConfigError

CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 10_000,  # as wide as the terminal
    "token_normalize_func": lambda name: name.replace("_", "-"),
}
# Command -> flag -> setting: those whose flags are settings.
TABLES = {
    "lora": flags.LORA, "dreambooth": flags.DREAMBOOTH, "textual-inversion": flags.TEXTUAL_INVERSION, "ti": flags.TEXTUAL_INVERSION,
    "data check": flags.DATA, "data preview": flags.DATA, "data cache": flags.DATA,
}  # fmt: skip
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


def path(ctx: Any) -> str:
    """The words that call a command, without the program's name."""
    names = []
    while ctx.parent is not None:
        names.append(ctx.info_name)
        ctx = ctx.parent
    return " ".join(reversed(names))


def hint(error: Any) -> str:
    """Where to look after what typer says is wrong with a command line."""
    own = path(error.ctx) if getattr(error, "ctx", None) else ""
    return f"`ft {own} --help` lists what there is" if own else "`ft --help` lists the commands"


class Command(TyperCommand):
    """Understands other tools' words, and says all that it does not understand at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for param in self.get_params(ctx) for name in param.opts if name.startswith("--")}
        own = path(ctx)
        meant = words.words_of_drawing() if own == "generate" else words.words_of_settings(TABLES[own]) if own in TABLES else {}
        mine = words.translated(args, known, meant)
        try:
            return super().parse_args(ctx, list(mine))
        except typer.TyperException as e:
            e.ctx = ctx  # type: ignore[attr-defined]  # typer leaves it out of some
            if type(e).__name__ != "NoSuchOption" or (told := _unknown(mine, known)) is None:
                raise
            raise ConfigError(told, f"`ft {own} --help` lists the flags, `ft config` the settings") from e

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _examples(ctx, formatter)


class CommandGroup(TyperGroup):
    """Lists its commands in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _options(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        shown = {name: one for name in self.list_commands(ctx) if (one := self.get_command(ctx, name)) and not one.hidden}
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, one in shown.items():
            panels.setdefault(getattr(one, "rich_help_panel", None) or "Commands", []).append((name, one.get_short_help_str(SENTENCE)))
        _write(formatter, panels)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _examples(ctx, formatter)


def _unknown(arguments: list[str], known: set[str]) -> str | None:
    """All flags of a command line that are not the command's, other tools' words with ours; None where there are no such words."""
    own = {words.bare_flag(flag) for flag in known}
    names = dict.fromkeys(a.partition("=")[0] for a in arguments if a.startswith("--"))
    told = {name: words.answer(name) for name in names if words.bare_flag(name) not in own}
    if not any(told.values()):
        return None
    return "\n       ".join(f"{name}: {answer or 'no such flag'}" for name, answer in told.items())


def _options(command: Any, ctx: Any, formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            first = re.sub("<[^>]*>", lambda found: VALUES.get(found[0].lower(), found[0]), record[0])
            panels.setdefault(_panel(param, path(ctx)), []).append((first, record[1]))
    _write(formatter, panels)


def _panel(param: Any, own: str) -> str:
    """The group that an option or argument of a command is listed in."""
    usual = "Arguments" if param.param_type_name == "argument" else "Options"
    return getattr(param, "rich_help_panel", None) or PANELS.get(own, {}).get(param.opts[0], usual)


def _write(formatter: Any, panels: dict[str, list[tuple[str, str]]]) -> None:
    """Groups of two columns, whose second ones stand below each other."""
    width = min(COLUMN, max(len(first) for rows in panels.values() for first, _ in rows))
    for name, rows in panels.items():
        with _section(formatter, name):
            formatter.write_dl([(rows[0][0].ljust(width), rows[0][1]), *rows[1:]], col_max=COLUMN)


def _examples(ctx: Any, formatter: Any) -> None:
    lines = EXAMPLES.get(path(ctx), ())
    if lines:
        with _section(formatter, "Examples"):
            for line in lines:
                formatter.write(f"  {line}\n")


def _section(formatter: Any, name: str) -> Any:
    return formatter.section(streams.painted(name, "1", sys.stdout))
