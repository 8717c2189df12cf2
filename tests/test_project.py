"""What keeps the project in order: versions that agree, floors, workflows and forms that parse, the release of a tag."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from ruamel.yaml import YAML

import finetune

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from floors import floors  # noqa: E402
from release import notes  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config")


def loaded(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))  # of YAML 1.2, in which `on` is a word


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_tested_set_has_all_that_is_asked_for() -> None:
    """But what only one system has."""
    pins = {plain(name): Version(version) for name, version in PINS.items()}
    extras = PROJECT["project"]["optional-dependencies"]
    for line in (*PROJECT["project"]["dependencies"], *(line for extra in extras.values() for line in extra)):
        wanted = Requirement(line)
        if wanted.marker is None:
            assert wanted.specifier.contains(pins[plain(wanted.name)]), line


def test_floors_are_what_is_asked_for_at_least(tmp_path: Path) -> None:
    assert floors(ROOT)["numpy"] == "2" and floors(ROOT)["ruff"] and len(floors(ROOT)) > 25
    project = '[project]\ndependencies = ["numpy>=2"]\n[project.optional-dependencies]\ntest = ["{}"]\n'
    for wrong in ("numpy>=3", "pytest", "pytest>=8,<9"):
        (tmp_path / "pyproject.toml").write_text(project.format(wrong))
        with pytest.raises(ValueError, match="one oldest version"):
            floors(tmp_path)


def test_hooks_are_the_checks_of_ci_and_name_no_versions() -> None:
    hooks = [hook for repo in loaded(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"] if repo["repo"] == "local"]
    assert len(hooks) == (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8").count("- id:")
    assert [hook["entry"] for hook in hooks] == ["python3 scripts/check.py style", "python3 scripts/check.py types"]
    checks = (ROOT / "scripts" / "check.py").read_text(encoding="utf-8")
    assert '"style": ((' in checks and '"types": ((' in checks


def test_an_unknown_check_is_refused_before_anything_is_installed() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "check.py"), "spelling"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: spelling: no such check\nhint: style or types")


def test_contract_modules_are_those_whose_docstrings_are_linted() -> None:
    """The first column of files in docs/architecture.md, and the foundations."""
    (pattern,) = (p for p, rules in PROJECT["tool"]["ruff"]["lint"]["per-file-ignores"].items() if rules == ["D1"])
    head, _, rest = pattern.removeprefix("!").partition("{")
    names, _, tail = rest.partition("}")
    linted = {head + name + tail for name in names.split(",")}
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## The objects")[1].split("## The rooms")[0]
    files = [f for row in re.findall(r"^\| `.*?\| (.*?) \|", table, re.M) for f in re.findall(r"`([\w/]+\.py)`", row)]
    contract = {f if f.startswith("finetune/") else f"finetune/{f}" for f in files}
    foundations = {f"finetune/{p.name}" for p in (ROOT / "finetune").glob("*.py") if not p.stem.startswith("__")}
    assert len(contract) > 14 and contract | foundations <= linted
    assert all((ROOT / path).is_file() for path in linted)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_are_whole(path: Path) -> None:
    """Every job has a machine and a bound, needs jobs that there are, and runs scripts that there are."""
    workflow = loaded(path)
    assert workflow.keys() <= {"name", "on", "permissions", "jobs", "env", "concurrency"} and workflow["name"] == path.stem
    assert workflow["permissions"] == {"contents": "read"}, "what needs more says so in its job"
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"] <= 180
        assert "needs" not in job or job["needs"] in workflow["jobs"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert step.keys() <= {"name", "uses", "with", "run", "env", "if"}
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v1)", step.get("uses", "a/b@v1"))
            assert "${{ github.ref" not in step.get("run", ""), "a tag's name is no part of a shell's words"
            for script in re.findall(r"(scripts/\w+\.py)", step.get("run", "")):
                assert (ROOT / script).is_file()


def test_what_publishes_runs_nothing_of_ours() -> None:
    jobs = loaded(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    publish = jobs["publish"]
    assert publish["environment"] == "pypi" and publish["permissions"] == {"id-token": "write"} and publish["needs"] == "build"
    assert [step["uses"].split("@")[0] for step in publish["steps"]] == ["actions/download-artifact", "pypa/gh-action-pypi-publish"]


def test_the_coverage_floor_is_held_by_one_job() -> None:
    matrix = loaded(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert [one["words"] for one in matrix["include"]] == ["--cov"]
    assert PROJECT["tool"]["coverage"]["report"]["fail_under"] >= 97


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.name)
def test_forms_are_what_github_takes(path: Path) -> None:
    form = loaded(path)
    assert form.keys() == {"name", "description", "labels", "body"}
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[\w-]+", one) for one in ids)
    for part in form["body"]:
        assert part["type"] in ("markdown", "textarea", "input")
        assert part["attributes"]["value" if part["type"] == "markdown" else "label"]
        assert part.keys() <= {"type", "id", "attributes", "validations"}


def test_a_bug_report_asks_for_what_is_needed() -> None:
    form = loaded(ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml")
    needed = {part["id"] for part in form["body"] if part.get("validations", {}).get("required")}
    assert needed == {"error", "command", "version", "system"} and "run" in {part.get("id") for part in form["body"]}


def test_a_citation_names_this_version() -> None:
    said = loaded(ROOT / "CITATION.cff")
    assert said["cff-version"] == "1.2.0" and said["version"] == finetune.__version__ and said["license"] == PROJECT["project"]["license"]
    assert said["message"] and said["title"] and said["type"] == "software"
    assert said["authors"] == [{"name": "The finetune authors"}]
    assert "the finetune authors" in (ROOT / "NOTICE").read_text(encoding="utf-8")


def test_the_changelog_begins_with_what_is_not_out_and_has_this_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == "Unreleased" and headings[1].startswith(f"{finetune.__version__} - ")
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", heading.replace("unreleased", "2026-01-31")) for heading in headings[1:])


@pytest.mark.parametrize(
    ("tag", "heading", "says"),
    [
        ("v1.2.3", "1.2.3 - 2026-11-30", None),
        ("v1.2.4", "1.2.4 - 2026-11-30", "finetune/__init__.py has version 1.2.3, whose tag is v1.2.3"),
        ("1.2.3", "1.2.3 - 2026-11-30", "the tag is 1.2.3"),
        ("v1.2.3", "1.2.3 - unreleased", r"no text below a heading such as `## 1\.2\.3 - "),
        ("v1.2.3", "1.2.3", "no text below a heading"),
        ("v1.2.3", "1.2.30 - 2026-11-30", "no text below a heading"),
        ("v1.2.3", "1.2.3 - 2026-11-30\n\n## 1.2.2 - 2026-10-01", "no text below a heading"),
    ],
)
def test_a_tag_is_released_if_version_and_changelog_fit(tag: str, heading: str, says: str | None, tmp_path: Path) -> None:
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "__init__.py").write_text('"""A package."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## Unreleased\n\n- Later.\n\n## {heading}\n\n- New.\n\n## 1.0.0 - 2026-01-01\n\n- Old.\n"
    )
    if says is None:
        assert notes(tmp_path, tag) == "- New.\n"
        return
    with pytest.raises(ValueError, match=says):
        notes(tmp_path, tag)
