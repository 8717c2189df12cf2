"""The installer: what it asks pip for, what it refuses, and that it clears nothing. pip itself is played."""

import ast
import importlib.util
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"].keys()
TORCH = re.findall(r"^torch==(.+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)[0]
posix = pytest.mark.skipif(sys.platform == "win32", reason="a Python that is a link or a script")


@pytest.fixture
def env(tmp_path: Path) -> Path:
    return tmp_path / "env"


@pytest.fixture
def asked() -> list[tuple[str, ...]]:
    """What pip was asked for, in order."""
    return []


@pytest.fixture
def installer(env: Path, asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`scripts/install.py` with its folder in a new place, on a Linux machine without a card."""
    monkeypatch.setenv("FT_VENV", str(env))
    spec = importlib.util.spec_from_file_location("installer", ROOT / "scripts" / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    real: Callable[..., int] = module.python

    def python(*words: str, **options: object) -> int:
        if words[:2] not in (("-m", "pip"), ("-m", "ensurepip")):
            return real(*words, **options)
        if "install" in words or "uninstall" in words:
            asked.append(words[2:])
        return 0

    monkeypatch.setattr(module, "python", python)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux" if sys.platform == "darwin" else sys.platform)
    return module


def packages(asked: list[tuple[str, ...]]) -> list[str]:
    """What was to be installed, without pip's own options."""
    return [words[-1] if "-e" in words else words[words.index("constraints.txt") + 1] for words in asked if words[0] == "install"]


def main(installer: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/install.py", *words])
    installer.main()


def records(installer: ModuleType, env: Path) -> Path:
    """Where pip notes what an environment has."""
    return next(path for path in (*env.glob("lib/python3*/site-packages"), env / "Lib" / "site-packages") if path.is_dir())


def test_the_second_time_is_quick_and_what_was_added_stays(
    installer: ModuleType, env: Path, asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    installer.install()
    assert packages(asked) == ["torch", ".[heic,optimizers]"], "users get no test tools"
    mine = records(installer, env) / "mine.py"
    mine.write_text("kept")
    asked.clear()
    installer.install()
    assert not asked
    installer.install("test")
    assert packages(asked) == ["torch", ".[heic,optimizers,test]"] and mine.read_text() == "kept"
    asked.clear()
    installer.install()
    assert not asked, "test tools that are there do no harm"
    monkeypatch.setattr(installer, "tested", lambda: "another set")
    installer.install()
    assert packages(asked) == ["torch", ".[heic,optimizers,test]"] and mine.read_text() == "kept"


def test_a_folder_of_somebody_elses_is_refused_by_name(installer: ModuleType, env: Path) -> None:
    env.mkdir()
    (env / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match=r"env is there already, and is no virtual environment\nhint: .*FT_VENV=folder"):
        installer.install()
    assert [p.name for p in env.iterdir()] == ["thesis.txt"] and (env / "thesis.txt").read_text() == "years of work"
    shutil.rmtree(env)
    env.write_text("a file")
    with pytest.raises(SystemExit, match="no virtual environment"):
        installer.install()
    assert env.read_text() == "a file"


def test_an_empty_folder_and_one_that_was_broken_off_are_finished(installer: ModuleType, env: Path, asked: list[tuple[str, ...]]) -> None:
    env.mkdir()
    installer.install()
    installer.PYTHON.unlink()
    (env / "mine.txt").write_text("kept")
    installer.install()
    assert installer.PYTHON.exists() and (env / "mine.txt").read_text() == "kept"


@posix
def test_an_environment_that_cannot_be_used_is_refused_and_left(installer: ModuleType, env: Path) -> None:
    installer.install()
    installer.PYTHON.unlink()
    installer.PYTHON.symlink_to("/nowhere/python3")
    with pytest.raises(SystemExit, match="does not start"):
        installer.install()
    installer.PYTHON.unlink()
    installer.PYTHON.write_text("#!/bin/sh\nexit 1\n")
    installer.PYTHON.chmod(0o755)
    installer.MARK.unlink()
    with pytest.raises(SystemExit, match=r"older than 3\.11"):
        installer.install()
    assert (env / "pyvenv.cfg").exists()


def test_what_pip_refused_is_not_taken_for_done(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Callable[..., int] = installer.python
    monkeypatch.setattr(installer, "python", lambda *words, **options: kind(*words, **options) or int("-e" in words))
    with pytest.raises(SystemExit, match=r"not all was installed; pip says why above\nhint: the same line again goes on"):
        installer.install()
    assert not installer.MARK.exists()


@pytest.mark.parametrize(
    ("words", "build"), [(["--cpu"], "cpu"), (["--cuda"], "cu130"), (["--cuda", "cu126"], "cu126"), (["--rocm"], "rocm7.2")]
)
def test_a_build_of_torch_is_asked_for_where_it_is_and_kept(
    words: list[str], build: str, installer: ModuleType, env: Path, asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(installer, monkeypatch, *words)
    wanted = (f"torch=={TORCH}+{build}", "--extra-index-url", f"https://download.pytorch.org/whl/{build}")
    assert any(words[-3:] == wanted for words in asked)
    (records(installer, env) / f"torch-{TORCH}+{build}.dist-info").mkdir()
    asked.clear()
    main(installer, monkeypatch, *words)
    assert packages(asked) == []
    monkeypatch.setattr(installer, "tested", lambda: "another set")
    main(installer, monkeypatch)
    assert any(words[-3:] == wanted for words in asked), "the next version is of the same build"
    asked.clear()
    main(installer, monkeypatch, "--cuda", "cu126" if build != "cu126" else "cu130")
    assert packages(asked), "another build is installed"


def test_a_package_that_was_taken_out_comes_back(
    installer: ModuleType, asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(installer, monkeypatch)
    asked.clear()
    kind: Callable[..., int] = installer.python
    monkeypatch.setattr(installer, "python", lambda *words, **options: kind(*words, **options) or int("check" in words))
    main(installer, monkeypatch)
    assert packages(asked) == ["torch", ".[heic,optimizers]"]


def test_what_is_missing_is_named_with_the_line_that_installs_it(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with monkeypatch.context() as debian:
        debian.setitem(sys.modules, "ensurepip", None)
        with pytest.raises(SystemExit, match=r"venv and ensurepip are missing\nhint: sudo apt install python3\.\d+-venv"):
            installer.install()
    assert not installer.VENV.exists()
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(installer, "starts", lambda python: python == "python3.12")
    with pytest.raises(SystemExit, match=r"too old: 3\.11 or newer is needed\nhint: there is a newer one: python3\.12 "):
        installer.install()
    monkeypatch.setattr(installer, "starts", lambda python: False)
    with pytest.raises(SystemExit, match=r"python\.org/downloads"):
        installer.install()


def test_a_mac_has_one_build(installer: ModuleType, asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit, match="a Mac has neither CUDA nor ROCm"):
        main(installer, monkeypatch, "--cuda")
    main(installer, monkeypatch, "--cpu")
    assert packages(asked)[0] == "torch"


def test_windows_gets_cuda_where_a_driver_is(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its usual build has none; a Linux machine's has."""
    monkeypatch.setattr(installer, "os", SimpleNamespace(name="nt"))
    assert installer.torch("") == ("torch",)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert installer.torch("")[0] == f"torch=={TORCH}+cu130" and installer.torch("cpu")[0] == f"torch=={TORCH}+cpu"


def test_the_lines_of_the_readme_are_understood(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"scripts/install\.py((?: --\w+)?(?: cu\d+)?)", readme)
    assert {"", " --cpu", " --cuda cu126", " --rocm"} == set(lines)
    for words in lines:
        main(installer, monkeypatch, *words.split())


def test_the_old_name_goes_and_another_project_of_that_name_stays(installer: ModuleType, env: Path, asked: list[tuple[str, ...]]) -> None:
    installer.install()
    record = records(installer, env) / "finetune-0.1.0.dist-info"
    record.mkdir()
    for source, removed in (("file:///elsewhere", False), (ROOT.as_uri(), True)):
        (record / "direct_url.json").write_text(json.dumps({"url": source}))
        installer.MARK.unlink()
        asked.clear()
        installer.install()
        assert (("uninstall", "--quiet", "--yes", "finetune") in asked) is removed


def test_an_old_python_can_read_why_it_is_refused() -> None:
    ast.parse((ROOT / "scripts" / "install.py").read_text(encoding="utf-8"), feature_version=(3, 7))


def test_extras_that_are_named_exist() -> None:
    texts = [p for folder in ("finetune", "docs", "scripts") for end in ("py", "md") for p in (ROOT / folder).rglob(f"*.{end}")]
    said = "\n".join(p.read_text(encoding="utf-8") for p in [*texts, ROOT / "README.md"])
    named = re.findall(r"finetune-diffusion\[([\w,]+)\]", said) + re.findall(r"libraries\.install\(['\"](\w+)", said)
    assert {"heic", "optimizers", "bitsandbytes"} <= {extra for words in named for extra in words.split(",")} <= EXTRAS
    assert "pip install 'finetune[" not in said and "pip install finetune\n" not in said
