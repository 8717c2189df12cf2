"""Style and types: `python scripts/check.py`."""

from install import PYTHON, install, run

if __name__ == "__main__":
    install("test", "tensorboard")
    run(str(PYTHON), "-m", "ruff", "check", ".")
    run(str(PYTHON), "-m", "ruff", "format", "--check", ".")
    run(str(PYTHON), "-m", "mypy")
