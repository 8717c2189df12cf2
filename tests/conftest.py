"""Fixtures: one thread, no network, an own cache, a tiny random base, a small folder of pictures."""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import settings as hypothesis_settings

hypothesis_settings.register_profile("quick", max_examples=100, deadline=None, database=None)
hypothesis_settings.register_profile("thorough", max_examples=1000, deadline=None, database=None)  # --hypothesis-profile=thorough
hypothesis_settings.load_profile("quick")

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.stable_diffusion(tmp_path_factory.mktemp("base") / "random")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`bases("sdxl")`: the folder of a tiny pipeline, by its name in tests/tiny.py."""
    root = tmp_path_factory.mktemp("bases")
    pipelines = tiny.PIPELINES | tiny.REPAINTING
    return cache(lambda name: pipelines[name](root / name))


@pytest.fixture(scope="session")
def imgs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("data") / "imgs")


@pytest.fixture(autouse=True, scope="session")
def _own_places(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp()
    os.environ |= {"FT_CACHE": str(root / "cache"), "FT_CONFIG": str(root / "no-config.yaml")}
    os.environ.pop("FT_BASE", None)


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For a test that looks at what the cache holds."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def settings(base: Path, imgs: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`settings(optim={"steps": 3})`: a small job with alpha different from rank."""
    return lambda **sections: tiny.job(base, imgs, tmp_path / "out", **sections)


@pytest.fixture
def train(settings: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Trains `settings(...)` in this process and returns the summary."""
    from finetune import config
    from finetune.training.run import train

    return lambda **sections: train(config.parse(settings(**sections)))
