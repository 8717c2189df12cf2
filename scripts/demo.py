"""Installs if need be, then runs `ft demo`: `python scripts/demo.py`."""

import sys

from install import PYTHON, install, run

install()
run(str(PYTHON), "-m", "finetune", "demo", *sys.argv[1:])
