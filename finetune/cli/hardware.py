"""What this machine computes on, told without the seconds of importing torch wherever its files say enough."""

import platform
import re
import shutil
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia")
CHOOSER = "https://pytorch.org/get-started/locally"


def accelerator() -> bool:
    if version("torch").endswith("+cpu"):  # as its wheel says
        return False
    import torch

    return torch.accelerator.is_available()


def say_idle_card() -> None:
    """Where an NVIDIA card is here that this PyTorch was not built for: says so, and what to install."""
    if not _nvidia() or _cuda():
        return
    torch_version = version("torch")
    plain = f"one that has: `pip install --force-reinstall torch=={torch_version.partition('+')[0]}`"
    remedy = plain if platform.system() == "Linux" else f"one that has by the line of {CHOOSER}"  # PyPI's has it on Linux alone
    print(f"device: cpu, though an NVIDIA card is here: this PyTorch ({torch_version}) has no CUDA; install {remedy}", file=sys.stderr)


def _nvidia() -> bool:
    return DRIVER.exists() or shutil.which("nvidia-smi") is not None


def _cuda() -> bool:
    """Whether torch was built with CUDA; its wheels on Windows are not named for it."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    version_file = Path(torch.origin).with_name("version.py").read_text(encoding="utf-8")
    return re.search(r"^cuda\b[^=]*= *['\"]", version_file, re.M) is not None
