"""What was found out about files, kept from scan to scan under what tells that a file has not changed. Torch-free."""

import json
import sqlite3
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from finetune import files
from finetune.text import from_json

_TABLES = """
CREATE TABLE IF NOT EXISTS found (place TEXT, name TEXT, value TEXT, PRIMARY KEY (place, name)) WITHOUT ROWID;
CREATE TEMP TABLE asked (name TEXT PRIMARY KEY) WITHOUT ROWID;
PRAGMA main.cache_size = -256;
PRAGMA temp.cache_size = -256;
"""  # kB; there may be millions of pictures, which need not be in memory twice

WAIT = 1.0  # seconds for another process to let go of the file


class Index:
    """JSON values by name, for one place. It only saves time: where it cannot be opened or written, all is looked at again.

    A wrong entry does no harm: a picture's content is verified when it is used.
    """

    def __init__(self, place: str, version: int | str) -> None:
        # The bytes of a folder's path need be no text, which is all that the database takes.
        self.place, self.base = f"{version} {place}".encode("utf-8", "backslashreplace").decode(), _open()

    def get(self, names: Sequence[str]) -> list[Any]:
        """The values of at most a few hundred names; None for what is not known."""
        marks, rows = ", ".join("?" * len(names)), dict[str, str]()
        with self._using():
            self.base.executemany("INSERT OR IGNORE INTO asked VALUES (?)", [(name,) for name in names])
            rows = dict(self.base.execute(f"SELECT name, value FROM found WHERE place = ? AND name IN ({marks})", (self.place, *names)))  # noqa: S608
        return [_value(rows.get(name)) for name in names]

    def put(self, values: Iterable[tuple[str, Any]]) -> None:
        with self._using():
            rows = [(self.place, name, _sealed(json.dumps(value))) for name, value in values]
            self.base.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", rows)

    def close(self, forget: bool) -> None:
        """With `forget`, nothing of this place is kept but what was asked for."""
        with self._using():
            if forget:
                self.base.execute("DELETE FROM found WHERE place = ? AND name NOT IN asked", (self.place,))
        self.base.close()

    @contextmanager
    def _using(self) -> Iterator[None]:
        """One transaction. Where another process holds the file, that is said once, and the rest goes without it."""
        try:
            with self.base:
                yield
        except sqlite3.Error as e:
            if _held(e):
                self.base.close()
                self.base = _nowhere()


def _sealed(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}{text}"


def _value(text: str | None) -> Any:
    """None for what was not written so, too: it is looked at again."""
    try:
        return from_json(text[8:]) if text and text == _sealed(text[8:]) else None
    except (ValueError, TypeError):
        return None


def _open() -> sqlite3.Connection:
    """The one file of all places; in memory where the disk does not let us, and anew where it is damaged."""
    path = files.cache_root() / "index.sqlite"
    for attempt in range(2):
        with suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(path, timeout=WAIT)
            try:
                base.executescript(_TABLES)
                return base
            except sqlite3.DatabaseError as e:
                base.close()
                if _held(e):
                    break
                if attempt == 0 and not isinstance(e, sqlite3.OperationalError):  # no database at all
                    path.unlink(missing_ok=True)
    return _nowhere()


def _nowhere() -> sqlite3.Connection:
    base = sqlite3.connect(":memory:")
    base.executescript(_TABLES)
    return base


def _held(error: sqlite3.Error) -> bool:
    """Whether another process holds the file, which is said."""
    held = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    if held:
        place = files.cache_root() / "index.sqlite"
        print(f"note: {place} is held by another process; pictures are looked at as if they were new", file=sys.stderr)
    return held
