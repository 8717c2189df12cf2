"""Style and types: `python scripts/check.py`, or one of them: `python scripts/check.py style`."""

import sys

from install import PYTHON, install, run

CHECKS = {
    "style": (("ruff", "check", "."), ("ruff", "format", "--check", ".")),
    "types": (("mypy",),),
}

if __name__ == "__main__":
    wanted = sys.argv[1:] or list(CHECKS)
    if unknown := set(wanted) - set(CHECKS):
        sys.exit(f"error: {' '.join(sorted(unknown))}: no such check\nhint: {' or '.join(CHECKS)}; none is both")
    install("test", "tensorboard")
    for check in wanted:
        for words in CHECKS[check]:
            run(str(PYTHON), "-m", *words)
