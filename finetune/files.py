"""Files that are there whole or not at all: written under a temporary name, flushed, then renamed."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

import platformdirs
import psutil

from finetune.errors import ResourceError


def cache_root() -> Path:
    """Where everything lies that can be made again: $FT_CACHE, or the user's cache folder.

    Raises:
        ResourceError: the user has none.
    """
    if chosen := os.environ.get("FT_CACHE"):
        return Path(chosen)
    try:
        return Path(platformdirs.user_cache_dir("finetune", appauthor=False))
    except RuntimeError as e:  # a number without a name, as containers are started with
        raise ResourceError("this user has no home folder, and so no place for the cache", "set FT_CACHE to a folder") from e


def home(path: str | Path) -> Path:
    """With `~` in front as the home folder; what names no user's stays, and is then a file that is not there."""
    return Path(os.path.expanduser(path))


def pictures(place: str) -> Path:
    """Where pictures are read: as written, or, of `finetune/bases/owl` and its like, with the package wherever that was installed."""
    path = home(place)
    ships = path.parts[:2] == ("finetune", "bases") and not path.exists()
    return Path(__file__).parents[1] / path if ships else path


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """An OSError, or what safetensors makes of one, as a ResourceError that names `path`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as e:
        raise refused(e, path, "cannot write ") from e


# What to do where the system refuses a path, by its reason.
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space or choose another --out"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "check whose it is and its permissions, or choose another place"),
    errno.EROFS: "it is mounted read-only; choose another place",
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "something else is in the way: remove it, or choose another place"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP), "choose another name"),
}


def refused(error: Exception, path: Path, what: str = "") -> ResourceError:
    """What the system says of a path, with the remedy that fits the reason."""
    number = getattr(error, "errno", None)
    if number is None and (told := re.search(r"os error (\d+)", str(error))):  # safetensors
        number = int(told[1])
    remedy = _REMEDIES.get(number or 0, "check the path, or choose another")
    if path.is_relative_to(cache_root()):
        remedy = "set FT_CACHE to a folder that can be written" + (", or free some space" if number == errno.ENOSPC else "")
    return ResourceError(f"{what}{path}: {getattr(error, 'strerror', None) or error}", remedy)


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Calls `fill(temporary)` and renames the result, a file or a folder, to `path`; a folder there is replaced.

    Raises:
        ResourceError: the disk is full or the place is not writable.
    """
    temporary = _passing("tmp", path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fill(temporary)
            _sync(temporary)
            if path.is_dir() and temporary.is_file():
                raise IsADirectoryError(errno.EISDIR, "a folder is in the place of the file")
            aside = _passing("old", path)
            if path.is_dir():
                path.rename(aside)
            temporary.replace(path)
            remove(aside)
            _sync_folder(path.parent)
        finally:
            remove(temporary)


def publish(folder: Path, fill: Callable[[Path], object]) -> None:
    """`write` for a folder whose name says its content: what is there already, or is put there meanwhile, is as good and stays."""
    if folder.exists():
        return
    temporary = _passing("tmp", folder)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            fill(temporary)
            _sync(temporary)
            temporary.rename(folder)
            _sync_folder(folder.parent)
        except OSError:
            if not folder.exists():
                raise
        finally:
            remove(temporary)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it, as far as the system lets it; one that is gone already is no matter."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


def put_aside(folder: Path) -> Path:
    """Renames what is to be removed, so that nobody sees half of it."""
    return folder.rename(_passing("tmp", folder))


def _passing(kind: str, path: Path) -> Path:
    """A name beside a path that says whose it is: of which process, and when that began, as numbers of processes are used again."""
    return path.with_name(f".{kind}-{path.name}-{os.getpid()}.{_began(os.getpid())}")


@lru_cache(maxsize=8)
def _began(process: int) -> int:
    """When a process began, in seconds since 1970."""
    return int(psutil.Process(process).create_time())


def _sync(path: Path) -> None:
    """Has the disk hold a file, or a folder with all that is in it."""
    if path.is_dir():
        for inside in path.iterdir():
            _sync(inside)
        _sync_folder(path)
    elif path.is_file():
        with path.open("rb+") as f:
            os.fsync(f.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


_LEFT = re.compile(r"\.(tmp|old|probe)-(?:(.+)-)?(\d+)(?:\.(\d+))?")  # what `write`, `publish` and `check_writable` name, and their process


def left_behind(folder: Path, age: float = 0) -> Iterator[Path]:
    """What processes that were killed left half-written in a folder, `age` seconds ago or more; not what may be the last whole copy of
    a file: of a folder that was being replaced."""
    for path in sorted(folder.glob(".*")):
        told = _LEFT.fullmatch(path.name)
        if told is None or _alive(int(told[3]), told[4]) or time.time() - path.lstat().st_mtime < age:
            continue
        kind, name = told[1], told[2] or ""
        replaced = any(other.name.startswith(f".old-{name}-") for other in folder.glob(".old-*"))
        if kind == "probe" or os.path.lexists(folder / name) or (kind == "tmp" and not replaced):
            yield path


def sweep(folder: Path, name: str) -> None:
    """Removes what killed processes left half-written of one file or folder."""
    for path in left_behind(folder):
        if (told := _LEFT.fullmatch(path.name)) and told[2] == name:
            remove(path)


def _alive(process: int, began: str | None) -> bool:
    """Whether the process of this number that began then runs here; where that cannot be asked, yes."""
    try:
        there = psutil.Process(process).create_time()
        return began is None or abs(there - int(began)) < SAME
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OverflowError, ValueError):  # another user's; or a number that is none
        return True


SAME = 3  # seconds: clocks are set


def touch(path: Path) -> None:
    """Notes that something in the cache was used now, so that what was not goes before it."""
    with suppress(OSError):
        os.utime(path)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        return sum(size(one) for one in path.iterdir())
    return path.lstat().st_size


def check_writable(folder: Path) -> None:
    """Raises:
    ResourceError: nothing can be written in `folder`; said before a run has cost anything.
    """
    probe = _passing("probe", folder / "x")
    write_bytes(probe, b"")
    probe.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all. Raises ResourceError as `write` does."""
    write(path, lambda p: p.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """The same of text, as UTF-8, line ends as they are."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """The same of what JSON can hold, with sorted keys: equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFDIR: "a folder",
}  # fmt: skip


def opened(path: Path | str) -> BufferedReader:
    """A regular file, or a link to one, to be read: whatever else stands in its place could wait for ever, or never end.

    Raises:
        OSError: it is missing, may not be read, or is something else, as `strerror` says.
    """
    _regular(os.stat(path), path)  # before it is opened, as that alone makes some devices do something
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        _regular(os.fstat(handle), path)  # what was opened, whatever was put there meanwhile
        return open(handle, "rb")
    except OSError:
        os.close(handle)
        raise


def _regular(found: os.stat_result, path: Path | str) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {what} and no file", str(path))


def check_regular(path: Path | str) -> None:
    """For what a library opens by its name. Raises OSError as `opened` does."""
    opened(path).close()


def read(path: Path | str) -> bytes:
    """Raises OSError as `opened` does."""
    with opened(path) as f:
        return f.read()


def read_text(path: Path | str, errors: str = "strict") -> str:
    """UTF-8. Raises OSError as `opened` does, and UnicodeDecodeError."""
    return read(path).decode("utf-8", errors).replace("\r\n", "\n")


def sha256(path: Path) -> str:
    """Of a file's bytes, 64 hexadecimal digits. Raises OSError as `opened` does."""
    with opened(path) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
