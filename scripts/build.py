"""Builds the source archive and the wheel into dist/: `python3 scripts/build.py`."""

from install import PYTHON, install, run

install("test", "tensorboard")
run(str(PYTHON), "-m", "hatchling", "build")
