"""Makes `.venv` with the tested set of packages: `python scripts/install.py`. Other scripts call it; a second call is quick."""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV = Path(os.environ.get("FT_VENV", ROOT / ".venv"))
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(*words: str, **options: object) -> None:
    """Runs a command in the repository's root; its exit code ends the script where it is not 0."""
    code = subprocess.call([str(w) for w in words], cwd=ROOT, **options)  # type: ignore[arg-type]
    if code:
        sys.exit(code)


def install() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  whoever runs this script has not installed yet
        sys.exit(f"error: Python {sys.version.split()[0]} is too old\nhint: run this script with Python 3.11 or newer")
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()).hexdigest()
    mark = VENV / ".installed"
    if PYTHON.exists() and mark.exists() and mark.read_text() == wanted:
        return
    print(f"installing into {VENV} ...", flush=True)
    venv.create(VENV, with_pip=True, clear=True)
    pip = (str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt")
    run(*pip, "torch")  # first, and pinned: left to its dependents, pip would take the newest
    run(*pip, "-e", ".[test,tensorboard]")
    mark.write_text(wanted)


if __name__ == "__main__":
    install()
    print(f"ready: {PYTHON.parent / 'ft'} --help")
