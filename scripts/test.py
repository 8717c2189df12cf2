"""Installs if need be, then checks style and types and runs the tests: `python scripts/test.py`. Words go on to pytest."""

import os
import sys

from install import PYTHON, install, run

install("test", "tensorboard")
run(str(PYTHON), "scripts/check.py")
# One thread each: small networks lose by a second one, and by five when something else runs. A file's tests share what they trained.
run(str(PYTHON), "-m", "pytest", "-n", "2", "--dist", "loadfile", *sys.argv[1:], env=os.environ | {"OMP_NUM_THREADS": "1"})
