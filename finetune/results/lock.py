"""One run at a time in an output folder: a lock that goes with its process, however that ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune import files
from finetune.errors import ConfigError, line
from finetune.run_folder import RunFolder

try:
    import fcntl
except ImportError:  # Windows: no lock, as on a file system without any
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the folder, which is made for it; what was made and stays empty is gone afterwards.

    Raises:
        ConfigError: another process holds it; which one, and on which host.
        ResourceError: nothing can be written there.
    """
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open(RunFolder(folder).lock)
    try:
        yield
    finally:
        RunFolder(folder).lock.unlink(missing_ok=True)
        os.close(handle)
        for path in new:
            with suppress(OSError):  # not empty
                path.rmdir()


def holder(folder: Path) -> str | None:
    """Who writes a run in a folder now, by the words of its lock; None where nobody does. Where a system has no locks, a file left by a
    killed run counts as one."""
    try:
        handle = os.open(RunFolder(folder).lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        name = line(os.pread(handle, 200, 0).decode(errors="replace")) if fcntl else ""
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except OSError:
        pass
    finally:
        os.close(handle)
    return name or "another process"


def _open(path: Path) -> int:
    """A descriptor that holds the lock, with this process's name in the file."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle, path)
            if _is(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # whoever held it removed it meanwhile


def _lock(handle: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as e:  # the latter on some network file systems
        holder = line(os.pread(handle, 200, 0).decode(errors="replace")) or "another process"
        raise ConfigError(f"--out {path.parent}: {holder} is writing a run there", "wait for it, or choose another --out or --name") from e
    except OSError:  # a network file system that has none: that is no reason not to train
        return


def _is(handle: int, path: Path) -> bool:
    """Whether the path is still the file that is open."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
