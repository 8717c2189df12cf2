"""What was found out about files, kept from scan to scan under what tells that a file has not changed. Torch-free."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from finetune import files

_TABLE = "CREATE TABLE IF NOT EXISTS found (place TEXT, name TEXT, value TEXT, PRIMARY KEY (place, name)) WITHOUT ROWID"


class Index:
    """JSON values by name, for one place. It only saves time: where it cannot be opened or written, all is looked at again.

    A wrong entry does no harm: a picture's content is verified when it is used.
    """

    def __init__(self, place: str, version: int) -> None:
        self.place, self.asked, self.new = f"{version} {place}", set[str](), list[tuple[str, str]]()
        self.base = _open()

    def get(self, names: Sequence[str]) -> list[Any]:
        """The values of at most a few hundred names; None for what is not known."""
        self.asked.update(names)
        marks, rows = ", ".join("?" * len(names)), dict[str, str]()
        with suppress(sqlite3.Error):
            rows = dict(self.base.execute(f"SELECT name, value FROM found WHERE place = ? AND name IN ({marks})", (self.place, *names)))  # noqa: S608
        return [json.loads(rows[name]) if name in rows else None for name in names]

    def put(self, name: str, value: Any) -> None:
        self.new.append((name, json.dumps(value)))

    def save(self, forget: bool) -> None:
        """Writes what was found; with `forget`, nothing of this place is kept but what was asked for."""
        with suppress(sqlite3.Error), self.base:
            self.base.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", [(self.place, *row) for row in self.new])
            if forget:
                there = [name for (name,) in self.base.execute("SELECT name FROM found WHERE place = ?", (self.place,))]
                gone = [(self.place, name) for name in there if name not in self.asked]
                self.base.executemany("DELETE FROM found WHERE place = ? AND name = ?", gone)
        self.base.close()


def _open() -> sqlite3.Connection:
    """The one file of all places; in memory where the disk does not let us, and anew where it is damaged."""
    path = files.cache_root() / "index.sqlite"
    for attempt in range(2):
        with suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(path, timeout=30)
            try:
                base.execute(_TABLE)
                return base
            except sqlite3.DatabaseError as e:
                base.close()
                if attempt == 0 and not isinstance(e, sqlite3.OperationalError):  # no database at all
                    path.unlink(missing_ok=True)
    base = sqlite3.connect(":memory:")
    base.execute(_TABLE)
    return base
