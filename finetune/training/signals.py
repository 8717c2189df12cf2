"""The first SIGINT, SIGTERM or SIGHUP is heard; after it the system's own action is back, so that the second ends the process at once."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HEARD = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP

# Seconds within which a second signal is the first again, of SIGHUP the latter: `timeout` sends one to the process and one to its group,
# a dropped connection one from the shell and one from the terminal.
TWICE = (0.1, 0.5)


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


def _say(text: str) -> None:
    """Past all buffers, which what was interrupted may hold."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


@contextmanager
def watch() -> Iterator[Stop]:
    """A SIGHUP that is ignored, as under nohup, stays so; SIGINT is heard also where a shell ignores it for what runs behind its script."""
    stop = Stop()
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1  # launchers pass on what the terminal has sent already, and kill what stays

    def note(number: int, frame: FrameType | None) -> None:
        if stop.number:
            return
        stop.number = number
        time.sleep(TWICE[number == getattr(signal, "SIGHUP", None)])
        for s in before if alone else ():
            signal.signal(s, signal.SIG_DFL)
        if not stop.patient:
            _say("stopping; a second signal ends the process at once")
            raise Interrupted(number)

    was = {s: signal.getsignal(s) for s in HEARD}
    before = {s: old for s, old in was.items() if old is not None and not (old == signal.SIG_IGN and s != signal.SIGINT)}
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
