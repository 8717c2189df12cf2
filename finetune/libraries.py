"""Libraries that few runs need: the line that installs them, and those that others import at the cost of seconds."""

import gc
import sys
from importlib.util import find_spec

IMPORTING = 5_000_000  # objects
DISTRIBUTION = "finetune-diffusion"  # `finetune` is another project's on PyPI; the package and `ft` keep their names


def install(extra: str) -> str:
    """The line that installs the packages of one of this distribution's extras."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def set_aside(package: str) -> None:
    """As if it were not installed, until it is asked for; what was loaded before stays. For a process that is all ours."""
    sys.modules.setdefault(package, None)  # type: ignore[arg-type]  # how Python notes that there is none


def importing() -> None:
    """Importing makes millions of objects that stay, and next to none that need collecting: until `imported`, nothing looks for them."""
    gc.set_threshold(IMPORTING, 20, 100)


def imported() -> None:
    """What is there now stays and is not looked through again; from here on there is something to collect."""
    if gc.get_threshold()[0] == IMPORTING:
        gc.freeze()
        gc.set_threshold(100_000, 20, 100)


def installed(package: str) -> bool:
    """Whether a package can be imported; from now on it can be, if it was set aside."""
    if sys.modules.get(package, package) is None:
        del sys.modules[package]
    return find_spec(package) is not None
