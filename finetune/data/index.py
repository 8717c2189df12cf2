"""What was found out about files, kept from scan to scan under what tells that a file has not changed. Torch-free."""

import hashlib
import json
from contextlib import suppress
from typing import Any

from finetune import files
from finetune.errors import ResourceError


class Index:
    """JSON values by name, for one place. A wrong entry does no harm: a picture's content is verified when it is used."""

    def __init__(self, kind: str, place: str, version: int) -> None:
        self.path = files.cache_root() / "index" / f"{kind}-{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
        self.version, self.rows, self.asked, self.changed = version, self._read(version), dict[str, Any](), False

    def _read(self, version: int) -> dict[str, Any]:
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        rows: dict[str, Any] = kept["rows"] if isinstance(kept, dict) and kept.get("version") == version else {}
        return rows

    def get(self, key: str) -> Any:
        value = self.rows.get(key)
        if value is not None:
            self.asked[key] = value
        return value

    def put(self, key: str, value: Any) -> None:
        self.asked[key], self.changed = value, True

    def save(self, forget: bool) -> None:
        """Writes what was found; with `forget`, nothing else than what was asked for."""
        rows = self.asked if forget else self.rows | self.asked
        if self.changed or len(rows) < len(self.rows):
            with suppress(ResourceError):  # it only saves time
                files.write_text(self.path, json.dumps({"version": self.version, "rows": rows}))
