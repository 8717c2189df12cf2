"""Builds the wheel and the source archive into dist/: `python scripts/build.py`."""

from install import PYTHON, install, run

install()
run(str(PYTHON), "-m", "pip", "install", "--quiet", "build")
run(str(PYTHON), "-m", "build")
