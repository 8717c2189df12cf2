"""What is built holds what the README names, and works where nothing else of this repository is."""

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.message import Message
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="comes with the extra `test`")

from hatch_build import addressed, web_address

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RELATIVE = r"\]\((?!https:)[^)]*\)"


def build(source: Path, out: Path, target: str) -> Path:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)], cwd=source, check=True, capture_output=True)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the archive alone, as an index's users get it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build(next(folder.iterdir()), tmp_path_factory.mktemp("wheel"), "wheel")


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_archive_holds_what_the_readme_names(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    named = re.findall(r"\]\((?!https:)([^)#]+)", README)
    named += re.findall(r"\b((?:scripts|accelerate_configs)/\w+\.\w+|constraints\.txt)", README)
    assert len(named) > 10 and set(named) <= held
    assert {"LICENSE", "NOTICE", "tests/test_readme.py", "docs/demo.png"} <= held
    assert not [name for name in held if name.startswith(("runs/", ".venv/", "dist/")) or "__pycache__" in name]


def test_the_wheel_holds_the_package_with_recipes_pictures_and_launch_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    of_the_package = {
        str(p.relative_to(ROOT).as_posix()) for p in (ROOT / "finetune").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    beside = {f"finetune/{p.relative_to(ROOT).as_posix()}" for f in ("recipes", "accelerate_configs") for p in (ROOT / f).iterdir()}
    assert held == of_the_package | beside
    assert "finetune/py.typed" in held


def test_the_readme_of_an_index_leads_nowhere_relative(wheel: Path) -> None:
    said = metadata(wheel)
    text = str(said.get_payload())
    assert said["Name"] == "finetune-diffusion" and said["Description-Content-Type"] == "text/markdown"
    assert "## Install" in text and not re.findall(RELATIVE, text)
    there = addressed(README, "https://example.org/a/b/%s/c0ffee/")
    assert "](https://example.org/a/b/raw/c0ffee/docs/demo.png)" in there and not re.findall(RELATIVE, there)
    assert "](https://example.org/a/b/blob/c0ffee/docs/training.md#who-reads-which-file)" in there
    assert re.sub(r"https://example.org/a/b/(raw|blob)/c0ffee/", "", there) == README


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://github.com/owner/name.git", "https://github.com/owner/name"),
        ("https://user:secret@example.org/owner/name", "https://example.org/owner/name"),
        ("git@github.com:owner/name.git", "https://github.com/owner/name"),
        ("ssh://git@example.org:22/group/sub/name.git", "https://example.org/group/sub/name"),
        ("/home/somebody/name", ""),
        ("file:///home/somebody/name", ""),
        ("../name", ""),
        ("", ""),
    ],
)
def test_an_address_is_the_webs_and_tells_no_secret(remote: str, address: str) -> None:
    assert web_address(remote) == address


@pytest.fixture(scope="module")
def ft(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ft` of the wheel in an environment of its own, which has the packages of this one but not this repository."""
    env = tmp_path_factory.mktemp("new") / "env"
    venv.create(env, symlinks=os.name != "nt")
    scripts = env / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run(pip, check=True, env=bare())
    (site,) = (p for p in (*env.glob("lib/python3*/site-packages"), env / "Lib" / "site-packages") if p.is_dir())
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a line in it is a folder, whose own .pth files are not read
    return scripts / "ft"


def bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FT_"))}


def says(program: Path, folder: Path, *words: str) -> str:
    done = subprocess.run(
        [str(program), *words], cwd=folder, env=bare() | {"FT_CACHE": str(folder / "cache")}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_works_in_an_empty_folder(ft: Path, tmp_path: Path) -> None:
    where = says(ft.with_name("python"), tmp_path, "-c", "import finetune; print(finetune.__file__)")
    assert where.startswith(str(ft.parents[1])), "not this repository's"
    assert "demo" in says(ft, tmp_path, "--help") and "tiny" in says(ft, tmp_path, "models")
    recipes = says(ft, tmp_path, "recipe", "ls")
    assert all(path.stem in recipes for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_folder(ft: Path, tmp_path: Path) -> None:
    said = says(ft, tmp_path, "demo", "--steps", "2")
    assert (tmp_path / "runs" / "demo" / "before-after.png").exists() and "ft generate" in said
