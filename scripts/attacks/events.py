"""The write events of a process below a folder: each may be the last thing it does, or be refused by the system."""

import builtins
import errno
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEFORE, AFTER = "before", "after"
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}
EXIT = 137  # of what SIGKILL ended, in a shell
CALLS = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "fsync", "utime", "link", "symlink", "truncate", "ftruncate")
Call = Callable[..., Any]


@dataclass
class Events:
    """Counts the write events below `root`; does something at event number `at`, counted from 1."""

    root: Path
    at: int = 0
    how: str = BEFORE  # before, after: ends the process; or the name of an error
    count: int = 0
    names: list[str] = field(default_factory=list)

    def watch(self) -> "Events":
        """From here on, for the whole process."""
        for name in CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        os.open = self._counted("os.open", os.open, lambda a, k: bool((a[1] if len(a) > 1 else k["flags"]) & (os.O_WRONLY | os.O_RDWR)))
        builtins.open = io.open = self._counted("open", io.open, _writes)
        import safetensors.torch

        module: Any = safetensors.torch
        real = module.serialize_file
        module.serialize_file = self._counted("serialize", lambda data, path, metadata=None: real(data, path, metadata), path=1)
        return self

    def _counted(
        self, name: str, real: Call, counts: Callable[[tuple[Any, ...], Mapping[str, Any]], bool] | None = None, path: int = 0
    ) -> Call:
        def call(*arguments: Any, **more: Any) -> Any:
            place = _path(arguments[path], more.get("dir_fd")) if len(arguments) > path else None
            if place is None or not _below(place, self.root) or (counts and not counts(arguments, more)):
                return real(*arguments, **more)
            self.count += 1
            self.names.append(f"{name} {os.path.relpath(place, self.root)}")
            if self.count != self.at:
                return real(*arguments, **more)
            if self.how in ERRORS:
                number = ERRORS[self.how]
                raise OSError(number, os.strerror(number), *([] if name in ("fsync", "ftruncate") else [place]))
            if self.how == AFTER:
                real(*arguments, **more)
            elif name == "serialize":  # which writes itself: half of it
                Path(place).write_bytes(b"\x40" + bytes(63))
            os._exit(EXIT)

        return call


def _writes(arguments: tuple[Any, ...], more: Mapping[str, Any]) -> bool:
    mode = arguments[1] if len(arguments) > 1 else more.get("mode", "r")
    return any(letter in mode for letter in "wax+")


def _path(place: Any, folder: int | None = None) -> str | None:
    """The path of a path or of a descriptor, perhaps in a folder that is open."""
    try:
        if isinstance(place, int):
            return os.readlink(f"/proc/self/fd/{place}")
        path = os.fsdecode(os.fspath(place))
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path) if folder is not None else os.path.abspath(path)
    except (OSError, TypeError, ValueError):
        return None


def _below(path: str, root: Path) -> bool:
    return path.startswith(f"{root}{os.sep}") and not path.endswith((".sqlite-journal",))
