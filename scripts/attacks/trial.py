"""One trial in a forked child: what it ended in, how long it took, how much memory it took beyond its parent's."""

import contextlib
import faulthandler
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GIGABYTE = 2**30
OK, REFUSED, FOREIGN, HANG, KILLED, MEMORY = "ok", "refused", "foreign", "hang", "killed", "memory"
SURVIVED = (OK, REFUSED)
Work = Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """What a trial ended in; `text` is a message, a traceback, or a signal's name."""

    kind: str
    text: str = ""
    output: str = ""  # of stdout and stderr
    seconds: float = 0.0
    peak: int = 0  # bytes beyond those at the start
    value: object = None  # what the work returned, if JSON holds it


def fork(work: Work, limit: float = 60.0, memory: int = 4 * GIGABYTE, kill_after: float | None = None) -> Outcome:
    """Runs `work` in a child of this process, for `limit` seconds at most; `kill_after` ends it by SIGKILL at that time."""
    return Running(work).end(limit, memory, kill_after)


class Running:
    """A child at work."""

    def __init__(self, work: Work) -> None:
        self.began, self.output = time.monotonic(), tempfile.TemporaryFile()
        self.reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.child = os.fork()
        if self.child == 0:
            os.close(self.reader)
            _child(work, writer, self.output.fileno())
        os.close(writer)

    def end(self, limit: float = 60.0, memory: int = 4 * GIGABYTE, kill_after: float | None = None) -> Outcome:
        """Waits for it."""
        told = _told(self.reader, self.child, limit if kill_after is None else kill_after)
        _, status, used = os.wait4(self.child, 0)
        os.close(self.reader)
        with self.output as output:
            output.seek(0)
            text = output.read().decode(errors="replace")
        seconds = time.monotonic() - self.began
        if told is None:
            return Outcome(HANG if kill_after is None else KILLED, "SIGKILL", text, seconds)
        if not told:
            how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.waitstatus_to_exitcode(status)}"
            return Outcome(KILLED, how, text, seconds)
        facts = json.loads(told)
        peak = max(0, used.ru_maxrss * 1024 - facts["start"])
        kind = MEMORY if peak > memory else facts["kind"]
        return Outcome(kind, facts["text"], text, seconds, peak, facts["value"])


def _told(reader: int, child: int, limit: float) -> bytes | None:
    """What the child writes until its end; None where it had to be killed."""
    parts: list[bytes] = []
    until = time.monotonic() + limit
    while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
        if not (part := os.read(reader, 65536)):
            return b"".join(parts)
        parts.append(part)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return None


def _child(work: Work, writer: int, output: int) -> None:
    """Never returns."""
    try:
        os.setpgid(0, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.enable(2)
        _begin()
        start = resident()
        kind, text, value = judged(work)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        facts = {"kind": kind, "text": text, "value": value, "start": start}
        os.write(writer, json.dumps(facts, default=str).encode("utf-8", "backslashreplace"))
    finally:
        os._exit(0)


def _begin() -> None:
    """As the command itself begins: streams that may go away. Torch makes its pool anew, which several threads at once cannot do."""
    from finetune.cli import streams

    streams.steady()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def judged(work: Work) -> tuple[str, str, object]:
    """What becomes of `work` in this process: kind, text, and what it returned."""
    try:
        return OK, "", work()
    except BaseException as e:
        return (REFUSED, str(e), None) if refusal(e) else (FOREIGN, traceback.format_exc(), None)


def refusal(error: BaseException) -> bool:
    """Whether the command makes a message of it: an error of ours, or the system's with a path."""
    from finetune.errors import FinetuneError

    return isinstance(error, FinetuneError) or (isinstance(error, OSError) and isinstance(error.filename, str | bytes))


def command(words: list[str]) -> int:
    """One command line in this process; a code that says that something is wrong is raised as a refusal.

    Raises:
        FinetuneError: the command refused, with its exit code.
    """
    from finetune import cli
    from finetune.errors import FinetuneError

    code = cli.run(words)
    if code:
        raise FinetuneError(f"exit code {code}")
    return code


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return peak()


def peak() -> int:
    """Most bytes of memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
