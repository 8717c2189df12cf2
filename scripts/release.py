"""Whether a tag may be released: `python3 scripts/release.py v0.1.0` prints its part of CHANGELOG.md, or says what does not fit."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADING = re.compile(r"^## (.+)$", re.M)


def version(root: Path) -> str:
    """What `ft --version` says."""
    found = re.search(r'^__version__ = "([^"]+)"$', (root / "finetune" / "__init__.py").read_text(encoding="utf-8"), re.M)
    return found[1] if found else ""


def notes(root: Path, tag: str) -> str:
    """What CHANGELOG.md says of the version that `tag` names.

    Raises:
        ValueError: the package has another version, or the changelog no text for it below a heading with a date.
    """
    if tag != f"v{version(root)}":
        raise ValueError(f"the tag is {tag}, but finetune/__init__.py has version {version(root)}, whose tag is v{version(root)}")
    pieces = HEADING.split((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    for heading, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if re.fullmatch(re.escape(tag[1:]) + r" - \d{4}-\d{2}-\d{2}", heading) and text.strip():
            return text.strip() + "\n"
    raise ValueError(f"CHANGELOG.md has no text below a heading such as `## {tag[1:]} - 2026-01-31`")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        sys.stdout.write(notes(ROOT, sys.argv[1]))
    except ValueError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
