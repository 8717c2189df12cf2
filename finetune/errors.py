"""Everything that can go wrong in a way a user can mend: one class per exit code.

`0` done, `1` the run failed, `2` usage or config, `3` data, `4` access to a base, `5` resources,
`130`/`143`/`129` stopped by SIGINT/SIGTERM/SIGHUP after a checkpoint was saved.
"""

import re
import signal

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")  # and what turns the line round


def plain(text: str) -> str:
    """Text that cannot steer a terminal: control characters other than tab and newline become `?`."""
    return _CONTROL.sub("?", text)


def unbroken(text: str) -> str:
    """The same as one line: whatever it quotes, it forges no second one."""
    return plain(text.replace("\n", "?"))


NEXT = "\n       "  # between mistakes that one message lists: it goes on indented
_BROKEN = re.compile(rf"\n(?!{NEXT[1:]}\S)")


def message(text: str) -> str:
    """What an error says, with no line that could be taken for another message."""
    return plain(_BROKEN.sub("?", text))


def line(text: str, most: int = 200) -> str:
    """Untrusted text as one plain line of at most `most` characters: it can forge no line of a report."""
    flat = plain(" ".join(text.split()))
    return flat if len(flat) <= most else flat[: most - 1] + "…"


class FinetuneError(Exception):
    """The run failed. `hint` is the next step, in one sentence."""

    exit_code, code = 1, "failed"  # `code` is what scripts read: docs/json.md
    shared = True  # whether every process of a run sees it alike, so that the first may speak for all

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class ConfigError(FinetuneError):
    """A flag, a recipe or a setting is wrong."""

    exit_code, code = 2, "usage"


class DataError(FinetuneError):
    """A picture, a caption or an adapter file is wrong."""

    exit_code, code = 3, "data"


class AccessError(FinetuneError):
    """A base is not found, gated, or out of reach offline."""

    exit_code, code = 4, "access"


class ResourceError(FinetuneError):
    """Out of memory or disk."""

    exit_code, code = 5, "resources"


class Interruption(FinetuneError):
    """A signal arrived where there is nothing to save: files are written whole or not at all."""

    code = "stopped"

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class Stopped(FinetuneError):
    """SIGINT, SIGTERM or SIGHUP arrived; the checkpoint is saved."""

    code = "stopped"

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, "the same command goes on from the saved checkpoint")
        self.exit_code = 128 + signal_number
