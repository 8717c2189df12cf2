"""The oldest versions that pyproject.toml allows, as constraints for pip: `python3 scripts/floors.py > floors.txt`."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def floors(root: Path) -> dict[str, str]:
    """Of every package that the project or one of its extras asks for, the version that it must have at least.

    Raises:
        ValueError: one has no such version, or two.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    found: dict[str, str] = {}
    for line in wanted:
        named = re.fullmatch(r"([\w.-]+)>=([\d.]+)(?:;.*)?", line)
        if named is None or found.setdefault(named[1], named[2]) != named[2]:
            raise ValueError(f"pyproject.toml: {line}: a package is asked for with one oldest version, as in name>=1.2")
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={floor}" for name, floor in floors(ROOT).items()))
