"""The first SIGINT, SIGTERM or SIGHUP is heard; after it the system's own action is back, so that the second ends the process at once."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HEARD = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP

TWICE = 0.1  # seconds within which a second signal is the first again: `timeout` sends one to the process, and one to its group


class Interrupted(BaseException):
    """A signal broke off what is done again next time. No library takes it for an error of its own."""

    def __init__(self, number: int = 0) -> None:
        super().__init__(number)
        self.number = number


class Stop:
    """`number` is the signal that arrived, or 0. While `patient`, it is looked at by `poll`, between steps and pictures; else it
    interrupts whatever is done."""

    number, patient = 0, False

    def poll(self) -> None:
        """Raises:
        Interrupted: a signal arrived.
        """
        if self.number:
            raise Interrupted(self.number)


@contextmanager
def watch() -> Iterator[Stop]:
    """What was ignored before, as SIGHUP under nohup, stays so."""
    stop = Stop()
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1  # launchers pass on what the terminal has sent already, and kill what stays

    def note(number: int, frame: FrameType | None) -> None:
        if stop.number:
            return
        stop.number = number
        time.sleep(TWICE)
        for s in before if alone else ():
            signal.signal(s, signal.SIG_DFL)
        if not stop.patient:
            raise Interrupted(number)

    before = {s: old for s in HEARD if (old := signal.getsignal(s)) not in (signal.SIG_IGN, None)}
    try:
        for s in before:
            signal.signal(s, note)
    except ValueError:  # not the main thread: whoever runs it there also stops it
        yield stop
        return
    try:
        yield stop
    finally:
        for s, handler in before.items() if not stop.number else ():
            signal.signal(s, handler)
