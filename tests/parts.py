"""What several files of tests share: the types of fixtures, a family opened from a folder, and a run in two parts."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune import config
from finetune.config import Job
from finetune.config.precedence import merge_settings
from finetune.families import load, source
from finetune.families.family import Family
from finetune.training.process import Process
from finetune.training.ready import Ready, ready
from finetune.training.run import Run, train

Bases = Callable[[str], Path]  # the folder of a tiny pipeline, by its name
Make = Callable[..., dict[str, Any]]  # the settings of a small job
Train = Callable[..., dict[str, Any]]  # a run's summary


def family(folder: Path) -> Family:
    return load.family(source.resolve_base(str(folder)))


def in_two_parts(settings: Mapping[str, Any], root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summaries of a run that was never stopped, and of one that was killed before its last checkpoint and gone on with, in `root`;
    the settings must make two checkpoints."""
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
