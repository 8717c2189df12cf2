"""stdout and stderr that may go away: a reader that has read enough, a dropped connection or a full disk never ends a run."""

import io
import os
import select
import sys
from typing import Any, TextIO

from finetune.errors import unbroken


class Steady(io.FileIO):
    """Counts as written what nobody takes; `lost` is what the system said of it."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            while (count := super().write(data)) is None:  # a full pipe that does not block
                select.select([], [self], [])
            return count
        except OSError as e:
            self.lost = e
            return memoryview(data).nbytes


def steady() -> None:
    """From here on for the whole process. What was closed from the start is nowhere, and not the next file that is opened."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, _steady(getattr(sys, name), number))


def _steady(stream: io.TextIOWrapper | None, number: int) -> TextIO:
    if stream is None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        return open(number, "w", encoding="utf-8", closefd=False)  # for the whole process
    raw = _raw(stream)
    if type(raw) is not io.FileIO:  # a console of Windows, or a test's
        return stream
    steady = Steady(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        steady if raw is stream.buffer else io.BufferedWriter(steady),  # unbuffered, as Python makes it
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _raw(stream: object) -> object:
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def lost(stream: TextIO) -> OSError | None:
    """Why what was written to the stream is not all there, but for a reader who went away, as `head` does."""
    stream.flush()
    error: OSError | None = getattr(_raw(stream), "lost", None)
    return None if isinstance(error, BrokenPipeError) else error


def coloured(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours, and nobody asked for none (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return False
    return os.name != "nt" or bool({"WT_SESSION", "TERM", "ANSICON"} & os.environ.keys())  # an old console shows the codes


def painted(text: str, code: str, stream: TextIO) -> str:
    """Text in a colour or weight of ANSI, such as 31 for red and 1 for bold, where the stream shows it."""
    return f"\033[{code}m{text}\033[0m" if coloured(stream) else text


def say(text: str) -> None:
    """A line on stderr, control characters removed."""
    print(unbroken(text), file=sys.stderr)
