"""Folders that may not be read or written, a user without a name or a home: refused by name, on every command, and never a traceback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from commands import commands

ROOT = Path(__file__).parents[1]
OTHER = 54321  # a number that no user has, as in a container that is started with one
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can be another user"),
]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that anybody may enter, which those of pytest are not."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ft-rights-") as made:
        root = Path(made)
        root.chmod(0o777)
        yield root


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def ft(place: Path) -> Run:
    def run(*words: object, **more: str) -> "subprocess.CompletedProcess[str]":
        kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME", "FT_CACHE", "FT_CONFIG")}
        env = kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FT_CACHE": str(place / "cache"), **more}
        done = subprocess.run(
            [sys.executable, "-m", "finetune", *map(str, words)], env={k: v for k, v in env.items() if v}, user=OTHER, group=OTHER,
            extra_groups=[], cwd=place, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def imgs(place: Path) -> Path:
    shutil.rmtree(place / "imgs", ignore_errors=True)
    return tiny.folder(place / "imgs", 3)


@pytest.mark.parametrize("name", ["lora", "generate", "check", "cache", "models", "config"])
def test_a_user_without_a_name_or_a_home(name: str, ft: Run, imgs: Path, place: Path) -> None:
    (place / "out").mkdir(exist_ok=True)
    (place / "out").chmod(0o777)
    done = ft(*commands(imgs, place)[name], FT_CACHE="")
    assert done.returncode in (0, 5), done.stderr
    if done.returncode:
        assert "FT_CACHE" in done.stderr
        done = ft(*commands(imgs, place)[name])
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["lora", "generate", "preview"])
def test_an_output_folder_without_rights(name: str, ft: Run, imgs: Path, place: Path) -> None:
    shutil.rmtree(place / "out", ignore_errors=True)
    (place / "out").mkdir(mode=0o755)  # root's
    done = ft(*commands(imgs, place)[name])
    assert done.returncode == 5 and str(place / "out") in done.stderr, done.stderr
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize("name", ["lora", "dry", "check", "preview", "cache"])
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_pictures_without_rights(name: str, mode: int, ft: Run, imgs: Path, place: Path) -> None:
    (place / "out").mkdir(exist_ok=True)
    (place / "out").chmod(0o777)
    imgs.chmod(mode)
    done = ft(*commands(imgs, place)[name])
    imgs.chmod(0o755)
    assert done.returncode in (3, 5) and "imgs" in done.stderr, done.stderr


def test_a_caption_and_a_picture_without_rights(ft: Run, imgs: Path, place: Path) -> None:
    for name in ("00.txt", "01.png"):
        (imgs / name).chmod(0)
        done = ft(*commands(imgs, place)["check"])
        assert done.returncode == 3 and name in done.stdout + done.stderr, done.stderr
        (imgs / name).chmod(0o644)


@pytest.mark.parametrize("name", ["lora", "generate", "check", "models", "config"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_configuration_without_rights(name: str, what: str, ft: Run, imgs: Path, place: Path) -> None:
    folder = place / "config"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.yaml").write_text("optim: {batch: 1}\n")
    (folder / "config.yaml" if what == "file" else folder).chmod(0)
    (place / "out").mkdir(exist_ok=True)
    (place / "out").chmod(0o777)
    done = ft(*commands(imgs, place)[name], FT_CONFIG=str(folder / "config.yaml"))
    assert (done.returncode in (2, 5) and "config" in done.stderr) or (done.returncode == 0 and name in ("models", "generate")), done.stderr


def test_the_run_of_another_user(ft: Run, imgs: Path, place: Path) -> None:
    """It can be drawn with, and not gone on with."""
    shutil.rmtree(place / "out", ignore_errors=True)
    (place / "out").mkdir()
    (place / "out").chmod(0o777)
    words = commands(imgs, place)["lora"]
    assert ft(*words).returncode == 0
    for path in (place / "out" / "lora", *(place / "out" / "lora").rglob("*")):
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() else 0o644)
    done = ft(*words, "--steps", "2")
    assert done.returncode == 5 and "lora" in done.stderr, done.stderr
    drawn = ft("generate", "x", "--adapter", place / "out" / "lora", "--steps", "1", "--out", place / "out" / "d")
    assert drawn.returncode == 0, drawn.stderr


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_cache_without_rights(mode: int, ft: Run, imgs: Path, place: Path) -> None:
    cache = place / "closed"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    cache.chmod(mode)
    shutil.rmtree(place / "out", ignore_errors=True)
    (place / "out").mkdir()
    (place / "out").chmod(0o777)
    for name in ("lora", "cache"):
        done = ft(*commands(imgs, place)[name], FT_CACHE=str(cache))
        assert done.returncode == 5 and "FT_CACHE" in done.stderr, done.stderr
    for name in ("check", "generate", "models"):
        assert ft(*commands(imgs, place)[name], FT_CACHE=str(cache)).returncode == 0
