"""SIGINT and SIGTERM as a flag that is looked at between steps and pictures; a second SIGINT stops at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """Work that is done again when the run goes on was broken off by a signal."""


class Stop:
    """`number` is the signal that arrived, or 0."""

    number = 0

    def poll(self) -> None:
        """Raises:
        Interrupted: a signal arrived.
        """
        if self.number:
            raise Interrupted


@contextmanager
def watch() -> Iterator[Stop]:
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.number = number

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs it there also stops it
        yield stop
        return
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
