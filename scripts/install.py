"""Makes `.venv` with the tested set of packages: `python3 scripts/install.py`. Other scripts call it; a second call is quick.

Nothing is cleared: a folder that is no virtual environment is refused, and what was added to one stays.
An old Python must be able to read this file, to say that it is too old.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VENV = Path(os.path.abspath(os.environ.get("FT_VENV") or str(ROOT / ".venv")))
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
MARK = VENV / ".installed"
EXTRAS = ("heic", "optimizers")  # what the README's commands use, for everybody
INDEX = "https://download.pytorch.org/whl/"
CUDA, ROCM = ("cu130", "cu126"), "rocm7.2"  # PyTorch 2.13's builds


def fail(message: str, hint: str) -> None:
    sys.exit(f"error: {message}\nhint: {hint}")


def call(*words: str, **options: object) -> int:
    """Runs a command in the repository's root and returns its exit code."""
    try:
        return subprocess.call([str(w) for w in words], cwd=str(ROOT), **options)  # type: ignore[arg-type]
    except KeyboardInterrupt:  # the command has said so; the same line again goes on from here
        sys.exit(130)


def run(*words: str, **options: object) -> None:
    """Runs a command; its exit code ends the script where it is not 0."""
    code = call(*words, **options)
    if code:
        sys.exit(code)


def python(*words: str, **options: object) -> int:
    """Runs the environment's Python, which sees nothing of PYTHONPATH; returns its exit code."""
    return call(str(PYTHON), "-I", *words, **options)


def install(*extras: str, build: str = "") -> None:
    """Installs what is missing: PyTorch, in the `build` of its index if one is named, and this project with `extras`."""
    check_python()
    before = marked()
    wanted = {"set": tested(), "extras": sorted({*EXTRAS, *extras, *before.get("extras", ())})}
    if PYTHON.exists() and before == wanted and build in ("", torch_label()):
        return
    make_environment()
    print(f"installing into {VENV} ...", flush=True)
    forget_the_old_name()
    chatty = () if sys.stdout.isatty() else ("--quiet",)
    pip = ("-m", "pip", "install", "--disable-pip-version-check", *chatty, "-c", "constraints.txt")
    if python(*pip, *torch(build or torch_label())):  # first, and pinned: left to its dependents, pip would take the newest
        fail("PyTorch was not installed; pip says why above", "it is built for 64-bit Python on Linux, Windows and Apple silicon")
    if python(*pip, "-e", f".[{','.join(wanted['extras'])}]"):
        fail("not all was installed; pip says why above", "the same line again goes on from here")
    MARK.write_text(json.dumps(wanted))


def marked() -> "dict[str, Any]":
    """What was installed last; nothing, where that was broken off or is of an older version of this script."""
    try:
        found = json.loads(MARK.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def tested() -> str:
    """The set of packages as one word; a repository that was moved is another."""
    files = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"".join([str(ROOT).encode(), *files])).hexdigest()


def records(package: str) -> "list[Path]":
    """What pip noted of a package that the environment has."""
    names = (f"{lib}/site-packages/{package}-*.dist-info" for lib in ("lib/python3*", "Lib"))
    return [path for name in names for path in VENV.glob(name)]


def torch_label() -> str:
    """`cpu`, `cu130`, `rocm7.2` ...: which build of PyTorch is there, so that the next version is of the same."""
    return next((path.name[: -len(".dist-info")].partition("+")[2] for path in records("torch")), "")


def torch(build: str) -> "tuple[str, ...]":
    """What pip is asked for. Without `build` the package index's own: with CUDA on Linux, without on Windows, with Metal on a Mac."""
    nvidia = shutil.which("nvidia-smi")
    if os.name == "nt" and nvidia and not records("torch"):
        build = build or CUDA[0]
    if build:
        versions = re.findall(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
        return f"torch=={versions[0]}+{build}", "--extra-index-url", INDEX + build
    if sys.platform == "linux" and not nvidia and not records("torch"):
        print("no NVIDIA card was seen: `scripts/install.py --cpu` leaves out several GB of CUDA libraries", flush=True)
    return ("torch",)


def check_python() -> None:
    if sys.version_info >= (3, 11):  # noqa: UP036  whoever runs this script has not installed yet
        return
    newer = next((f"python3.{n}" for n in (13, 12, 11, 14) if starts(f"python3.{n}")), None)
    elsewhere = "python.org/downloads has newer ones; or: uv run --no-project -p 3.12 scripts/install.py"
    line = f"there is a newer one: {newer} {sys.argv[0]}" if newer else elsewhere
    fail(f"Python {platform.python_version()} is too old: 3.11 or newer is needed", line)


def starts(python: str) -> bool:
    try:
        return subprocess.call([python, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def make_environment() -> None:
    """A virtual environment with pip; one that is there is kept, and gets pip if it has none."""
    another = f"move it away, or choose another folder: FT_VENV=folder python3 {sys.argv[0]}"
    if VENV.is_file() or (VENV.is_dir() and any(VENV.iterdir()) and not (VENV / "pyvenv.cfg").is_file()):
        fail(f"{VENV} is there already, and is no virtual environment", another)
    if not os.path.lexists(str(PYTHON)):  # also where an earlier run was broken off: it only adds
        create()
    try:
        old = python("-c", "import sys; sys.exit(sys.version_info < (3, 11))")
    except OSError as e:
        fail(f"{VENV}: the Python of this virtual environment does not start ({e.strerror})", another)
    if old:
        fail(f"{VENV}: the Python of this virtual environment is older than 3.11", another)
    no_pip = python("-m", "pip", "--version", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if no_pip and python("-m", "ensurepip", "--default-pip", stdout=subprocess.DEVNULL):
        fail(f"{VENV}: this virtual environment has no pip, and none could be added", another)


def create() -> None:
    try:
        import ensurepip  # noqa: F401  Debian and Ubuntu keep it in a package of its own
        import venv
    except ImportError:
        apt = "sudo apt install python{}.{}-venv".format(*sys.version_info)
        line = apt if shutil.which("apt-get") else f"the package that brings them, or: uv venv --seed {VENV}"
        fail("this Python cannot make virtual environments: its modules venv and ensurepip are missing", line)
    try:
        venv.create(str(VENV), symlinks=os.name != "nt")
    except OSError as e:
        fail(f"{VENV} cannot be made ({e.strerror})", f"choose another folder: FT_VENV=folder python3 {sys.argv[0]}")


def forget_the_old_name() -> None:
    """This project was the distribution `finetune`; left in, its removal one day would take `ft` with it."""
    for record in records("finetune"):
        source = record / "direct_url.json"
        if source.exists() and json.loads(source.read_text()).get("url") == ROOT.as_uri():
            python("-m", "pip", "uninstall", "--quiet", "--yes", "finetune")


def chosen(given: argparse.Namespace) -> str:
    """The build of PyTorch that was asked for; a Mac has one only."""
    if sys.platform != "darwin":
        return given.build or ""
    if given.build not in (None, "cpu"):
        fail("a Mac has neither CUDA nor ROCm", "leave it out: the usual build of PyTorch uses the GPU")
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Installs ft into .venv, or FT_VENV, with the tested set of packages. Clears nothing.")
    build = parser.add_mutually_exclusive_group()
    build.add_argument(
        "--cpu", dest="build", action="store_const", const="cpu", help="PyTorch for the CPU alone: 200 MB on Linux, not several GB"
    )
    build.add_argument(
        "--cuda", dest="build", nargs="?", const=CUDA[0], choices=CUDA, help="for NVIDIA cards: %(const)s, or cu126 for those before Turing"
    )
    build.add_argument("--rocm", dest="build", action="store_const", const=ROCM, help="for AMD cards, on Linux")
    given = parser.parse_args()
    if MARK.exists() and PYTHON.exists() and python("-m", "pip", "check", stdout=subprocess.DEVNULL):
        MARK.unlink()  # something was taken out since
    install(build=chosen(given))
    activate = f"{PYTHON.parent / 'activate'}"
    print(f"ready: {PYTHON.parent / 'ft'} demo\nto call it `ft`: {activate if os.name == 'nt' else f'source {activate}'}")


if __name__ == "__main__":
    main()
