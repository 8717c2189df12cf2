"""Signals, two runs at once, and readers that go away."""

import errno
import os
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import commands

from finetune.data import index
from finetune.errors import ConfigError
from finetune.results import lock
from finetune.run_folder import RunFolder
from finetune.training import signals

FT = [sys.executable, "-m", "finetune"]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {s: signal.signal(s, signal.SIG_DFL) for s in signals.HEARD}  # under nohup one is ignored
    yield
    for s, handler in before.items():
        signal.signal(s, handler)


@pytest.mark.parametrize("number", signals.HEARD)
def test_the_first_signal_interrupts_and_the_second_is_the_systems(number: int) -> None:
    with pytest.raises(signals.Interrupted) as raised, signals.watch():
        os.kill(os.getpid(), number)
    assert raised.value.number == number
    assert {signal.getsignal(s) for s in signals.HEARD} == {signal.SIG_DFL}


def test_a_patient_run_is_not_broken_off_but_looks() -> None:
    with signals.watch() as stop:
        stop.patient = True
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.number == signal.SIGHUP and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with pytest.raises(signals.Interrupted):
            stop.poll()


def test_a_signal_that_arrives_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.training.signals.time.sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with signals.watch() as stop:
        stop.patient = True
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.number == signal.SIGTERM


def test_what_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.watch() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
    assert stop.number == 0 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_workers_hear_what_their_launcher_passes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with signals.watch() as stop:
        stop.patient = True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.number == signal.SIGINT


def test_a_signal_is_heard_while_libraries_are_imported(imgs: Path, tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
from finetune import cli
class Finder:
    def find_spec(self, name, *_):
        if name == "diffusers":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
sys.argv = ["ft", "lora", "--data", {str(imgs)!r}, "--base", "tiny", "--out", {str(tmp_path / "out")!r}]
cli.main()"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 143 and done.stderr.endswith("process at once\nerror: interrupted by SIGTERM\n"), done.stderr


def test_one_run_at_a_time_in_a_folder(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    from finetune import config
    from finetune.training.run import train

    out = tmp_path / "out"
    with lock.held(out), pytest.raises(ConfigError, match=f"process {os.getpid()} on {socket.gethostname()} is writing") as e:
        train(config.parse(settings()), fresh=True)
    assert "another --out" in e.value.hint and not out.exists(), "an empty folder is not left behind"
    with lock.held(out):
        pass


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from finetune.results import lock
with lock.held(Path(sys.argv[1])):
    print(1, flush=True)
    input()"""
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"1\n"
        with pytest.raises(ConfigError, match=f"process {other.pid} on "), lock.held(tmp_path):
            pass
        other.kill()
        other.wait()
    assert RunFolder(tmp_path).lock.exists()
    with lock.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("finetune.results.lock.fcntl.flock", none)
    with lock.held(tmp_path):
        pass


def test_an_index_that_another_process_holds_is_said_within_2_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FT_CACHE", str(tmp_path))
    first = index.Index("place", 1)
    first.put([("a", 1)])
    monkeypatch.setattr(index, "WAIT", 0.1)
    later = index.Index("place", 1)
    monkeypatch.undo()
    monkeypatch.setenv("FT_CACHE", str(tmp_path))
    other = sqlite3.connect(tmp_path / "index.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    said = f"note: {tmp_path / 'index.sqlite'} is held by another process"
    began = time.monotonic()
    for held in (later, index.Index("place", 1)):
        assert held.get(["a"]) == [None] and time.monotonic() - began < 2
        held.put([("b", 2)])
        assert held.get(["b"]) == [2], "it goes on in memory"
        held.close(forget=True)
    assert capsys.readouterr().err.count(said) == 2
    other.rollback()
    assert first.get(["a", "b"]) == [1, None], "nothing is lost"


@pytest.mark.parametrize("closed", [False, True], ids=["a reader that went away", "closed from the start"])
def test_a_run_ends_though_nobody_reads(base: Path, imgs: Path, tmp_path: Path, closed: bool) -> None:
    words = ["lora", "--data", imgs, "--base", base, "--steps", "2", "--batch", "1", "--resolution", "16", "--out", tmp_path / "out"]
    command = [*FT, *map(str, words)]
    if closed:
        done = subprocess.run(["/bin/sh", "-c", '"$@" >&- 2>&-', "sh", *command])
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=writer)
        os.close(writer)
    assert done.returncode == 0 and (tmp_path / "out" / "lora.safetensors").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_said_at_the_end(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*FT, "models"], stdout=full, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": unbuffered}
        )
    assert done.returncode == 5 and done.stderr.startswith("error: stdout: No space left on device\n")


def test_a_job_behind_a_script_hears_sigint(tmp_path: Path) -> None:
    """For which a shell ignores it; `kill -INT` means it all the same."""
    program = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from finetune.training import signals
try:
    with signals.watch():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
except signals.Interrupted as heard:
    raise SystemExit(heard.number)"""
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert made.returncode == signal.SIGINT and "a second signal ends the process at once" in made.stderr


FOUND_NOTHING = 3
EVERY = ["lora", "dry", "generate", "check", "preview", "cache", "clean", "models", "config"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_every_command_ends_at_a_signal_whenever_it_comes(name: str, number: signal.Signals, imgs: Path, tmp_path: Path) -> None:
    """Early, while libraries are imported, and later; twice, which may end it at once."""
    words = [str(w) for w in commands(imgs, tmp_path)[name]]
    (tmp_path / "out").mkdir()
    for after, times in ((0.15, 1), (1.0, 1), (3.0, 1), (3.0, 2)):
        process = subprocess.Popen([*FT, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        time.sleep(after)
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.05)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (FOUND_NOTHING if name == "clean" else 0, 128 + number, -number), err
        assert "Traceback" not in err or "finetune" not in err, err  # Python's own, before it is ours


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_command_ends_where_nobody_reads(name: str, imgs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for closed in (">&-", "2>&-", ">&- 2>&-", "| true"):
        words = " ".join(shlex.quote(str(w)) for w in [*FT, *commands(imgs, tmp_path)[name]])
        done = subprocess.run(["/bin/bash", "-c", f"set -o pipefail; {words} {closed}"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == (FOUND_NOTHING if name == "clean" else 0) and "Traceback" not in done.stderr, done.stderr
