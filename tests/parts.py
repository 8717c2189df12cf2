"""A run that is killed before its last checkpoint and gone on with, beside one that was never stopped."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune import config
from finetune.config import Job
from finetune.config.precedence import merge_settings
from finetune.training.process import Process
from finetune.training.ready import Ready, ready
from finetune.training.run import Run, train


def in_two_parts(settings: Mapping[str, Any], root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summaries of the whole run and of the one in two parts, in `root`; the settings must make two checkpoints."""
    whole = train(config.parse(merge_settings(settings, {"run": {"out": str(root / "whole")}})))
    job = config.parse(merge_settings(settings, {"run": {"out": str(root / "parts")}}))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        train(job)
    _, newest = sorted((root / "parts" / "checkpoints").glob("step-*"))
    shutil.rmtree(newest)
    return whole, train(job)


def readied(job: Job) -> Ready:
    """A run before anything is loaded."""
    return ready(Process.of(job), job, fresh=False)
