"""The house: who may import whom, what the loop may not know, and what the command line may not load."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from finetune.families.catalogue import FAMILIES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "finetune"

# Each room may import the rooms named here, itself, and the foundations. The rooms stand so that each imports from those above it alone.
MAY_IMPORT = {
    "bases": set(),
    "config": {"bases"},  # the usual rate is the base's own
    "data": set(),
    "objectives": {"config"},
    "families": {"objectives", "bases", "data"},
    "methods": {"config", "families"},
    "adapters": {"families"},
    "evaluation": {"data", "objectives", "bases"},
    "sampling": {"adapters", "config", "data", "families", "methods"},
    "results": {"adapters", "config", "data", "families", "methods"},
    "preparation": {"adapters", "config", "data", "families", "methods", "objectives", "results", "sampling"},
    "training": {
        "adapters", "bases", "config", "data", "evaluation", "families", "methods", "objectives", "preparation", "results", "sampling",
    },
    "cli": {"adapters", "config", "data", "families", "preparation", "results", "sampling", "training"},
}  # fmt: skip
FOUNDATIONS = {"draws", "errors", "files", "header", "libraries", "randomness", "run_folder", "tensor_files", "tensors", "text"}


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Import | ast.ImportFrom)]


def rooms(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {a.name.split(".")[1] for a in node.names if a.name.startswith("finetune.")}
    parts = (node.module or "").split(".")
    if parts[0] != "finetune":
        return set()
    return {parts[1]} if len(parts) > 1 else {a.name for a in node.names}


def test_every_room_is_known() -> None:
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()} == MAY_IMPORT.keys()


def test_the_table_has_no_circle() -> None:
    above: set[str] = set()
    for room, used in MAY_IMPORT.items():
        assert used <= above, f"{room} may import {used - above}, which stand below it"
        above.add(room)


def test_every_room_imports_what_it_may() -> None:
    """A permission that nothing needs would let in what the order is to keep out."""
    used: dict[str, set[str]] = {}
    for room in MAY_IMPORT:
        used[room] = set()
        for path in (PACKAGE / room).rglob("*.py"):
            used[room] |= set().union(*(rooms(n) for n in imports(path)))
    assert not {room: idle for room, may in MAY_IMPORT.items() if (idle := may - used[room])}


@pytest.mark.parametrize("path", sorted(p for p in PACKAGE.glob("*.py") if p.stem not in ("__init__", "__main__")), ids=lambda p: p.name)
def test_foundations_import_no_room(path: Path) -> None:
    assert path.stem in FOUNDATIONS
    assert not set().union(*(rooms(n) for n in imports(path))) - FOUNDATIONS - {"__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    if room not in MAY_IMPORT:
        return
    used = set().union(*(rooms(n) for n in imports(path))) - FOUNDATIONS - {room, "__version__"}
    assert used <= MAY_IMPORT[room], f"{path.name} imports {used - MAY_IMPORT[room]}"


def test_families_and_methods_do_not_import_each_other() -> None:
    for path in (PACKAGE / "families").rglob("*.py"):
        assert not any("methods" in rooms(n) for n in imports(path))
    facts = {"finetune.families.spec", "finetune.families.family"}  # torch-free facts, and what every family answers
    for path in (PACKAGE / "methods").glob("*.py"):
        assert all(n.module in facts for n in imports(path) if "families" in rooms(n) and isinstance(n, ast.ImportFrom))


def test_the_loop_names_no_family_and_no_method() -> None:
    text = (PACKAGE / "training" / "loop.py").read_text(encoding="utf-8").lower()
    for name in ("lora", "unet", "stable", "diffusion_model", "sdxl", "flux", "dreambooth", "inversion", "isinstance", "is_xl"):
        assert name not in text, name


def test_an_adapter_type_is_named_in_its_row_alone() -> None:
    """LoRA's and DoRA's names are also those of kinds of files, which the adapter files' own modules and what loads them know, and the
    table of who reads which."""
    knowing = {*(PACKAGE / "adapters").glob("*.py"), PACKAGE / "families" / "names" / "readers.py", PACKAGE / "config" / "adapter_types.py"}
    for path in (p for p in PACKAGE.rglob("*.py") if p not in knowing):
        said = {n.value for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)}
        assert not said & {"rslora", "loha", "lokr", "oft", "lora_magnitude_vector"}, path


# What names a family, or what one family alone has.
FAMILY_WORDS = {"flux", "stable-diffusion", "stable_diffusion", "stablediffusion", "sdxl", "sd_v1", "sd_v2", "sd15", "sd21", "unet"}
# Where such a word may stand outside of families/, and why. Recipes and bases, which are data, are named by what they are of.
SPOKEN = {
    "adapters/places.py": {"lora_unet_": "kohya's tools call every denoiser so"},
    "cli/words.py": {"learning-rate unet-lr": "other tools' flags", "network-train-unet-only": "other tools' flags"},
    "cli/demo.py": {"sd15": "an example of a base"},
    "cli/examples.py": {"sdxl": "examples of bases and recipes", "sd15": "an example of a base"},
    "cli/flags.py": {"sd15": "the default base with an accelerator, as families/source.py has it"},
    "config/precedence.py": {"recipes/sd15-style.yaml": "an example of a recipe"},
    "objectives/build.py": {"such as sd21": "an example of a base"},
    "config/objective.py": {"as in FLUX.1's sampling": "the source of a setting"},
}


def spoken(path: Path) -> set[str]:
    """String constants and identifiers of a module; of its docstrings, which may say where something is from, none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    said: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            said.add(node.value)
        for name in ("id", "attr", "arg", "name", "module"):
            if isinstance(value := getattr(node, name, None), str):
                said.add(value)
    return said


def words_of_families() -> set[str]:
    words = set(FAMILY_WORDS)
    for spec in FAMILIES:
        words |= {spec.name, *spec.names.blocks, *spec.names.known, *(name.lower() for name in spec.pipelines)}
    return words


ELSEWHERE = [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).parts[0] not in ("families", "bases")]


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_family_is_named_in_families_alone(path: Path) -> None:
    allowed = SPOKEN.get(path.relative_to(PACKAGE).as_posix(), {})
    named = {said for said in spoken(path) if any(word in said.lower() for word in words_of_families())}
    assert not {said for said in named if not any(known in said for known in allowed)}
    assert not {known for known in allowed if not any(known in said for said in named)}, "an exception that nothing needs"


RUN_FILES = re.compile(
    r"run\.yaml|metrics\.jsonl|(summary|finished|pictures)\.json|^\.lock|\.job\.yaml|state\.(safetensors|json)|manifest\.json"
    r"|best\.safetensors|-card\.md|^-?step-|/step-|^-(best|average-)|(^|/)(checkpoints|averages|samples|tensorboard|ahead)(/.*\.png|/?$)"
)
# A state's tensors of averages are named alike; words of a message or a help text, which have blanks, are no names.
NO_FILES = {"averages", "averages/"}


def test_the_names_of_a_runs_folder_are_written_in_one_module() -> None:
    for path in (p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "run_folder.py"):
        constants = (n.value for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant))
        words = {c for c in constants if isinstance(c, str) and not re.search(r"\s", c)}
        assert not [c for c in words - NO_FILES if RUN_FILES.search(c)], path


def test_every_module_says_what_it_is() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


# Files of one name, and why: each is looked for by the name.
SHARED_FILES = {
    "adapter": "a command group, and what it is about",
    "cache": "a command group, and what it is about",
    "clean": "a command, and what it does",
    "data": "a command group, the recipes' section, and the stage of preparation",
    "demo": "a command, and what it does",
    "generate": "a command, and what it does",
    "objective": "the recipes' section, and the protocol that it chooses from",
    "errors": "what people can mend; what a run measures of pictures",
    "weights": "an adapter's tensors; those of a loss",
}
# Functions and classes of one name, and why. A command's function is named as the command is, and is not looked at.
SHARED_NAMES = {
    "read write save": "what the module is about",
    "attach result": "what each method answers",
    "members original holds recognises": "what each family's names answer",
    "Data Objective Run Source": "a section of the recipes, whose schema says it; and what is made of it",
    "encode decode": "pixels and latents; and all of a run's pictures",
    "uniform": "the distribution: of times, of weights, of numbers",
    "remove left_behind sweep opened": "of files; and of what a room keeps in them",
    "lines notes": "what there is to say of the module's subject",
    "grid": "a sheet of pictures, and its file's name",
    "train restore": "of processes; of one run; and of its parts",
    "cut planned": "of one picture, and of all of them; of data, and of all work",
}


def shared(names: Iterable[tuple[str, Path]]) -> dict[str, list[str]]:
    """Names that stand in several modules, with these."""
    places: dict[str, list[str]] = {}
    for name, path in names:
        places.setdefault(name, []).append(path.relative_to(PACKAGE).as_posix())
    return {name: where for name, where in places.items() if len(where) > 1}


def test_no_two_modules_share_a_name() -> None:
    """A family's facts, names and network are three files of the family's name."""
    paths = [p for p in PACKAGE.rglob("*.py") if p.stem != "__init__"]
    families = {p.stem for p in (PACKAGE / "families" / "facts").glob("*.py")}
    assert not {name: where for name, where in shared((p.stem, p) for p in paths).items() if name not in SHARED_FILES.keys() | families}


def public(path: Path) -> Iterator[str]:
    """A module's own functions and classes; of commands none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            decorators = " ".join(ast.unparse(d) for d in node.decorator_list)
            if ".command(" not in decorators and node.name != "command":
                yield node.name


def test_no_two_public_things_share_a_name() -> None:
    names = [(name, path) for path in PACKAGE.rglob("*.py") for name in public(path)]
    allowed = {name for group in SHARED_NAMES for name in group.split()}
    assert not {name: where for name, where in shared(names).items() if name not in allowed}


def test_the_command_line_loads_no_torch_and_is_quick() -> None:
    program = "import sys, finetune.cli; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    libraries = [sys.executable, "-c", "import typer.main, pydantic, ruamel.yaml, psutil"]
    ours, theirs = [], []  # in turn, as a busy machine makes the processor's time longer too
    for _ in range(4):
        ours.append(_processor_seconds([sys.executable, "-m", "finetune", "--help"]))
        theirs.append(_processor_seconds(libraries))
    assert min(ours) < 4 * min(theirs), (ours, theirs)  # measured: 2.8 to 3.1 times


def _processor_seconds(command: list[str]) -> float:
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("command", ["lora", "dreambooth", "textual-inversion"])
def test_a_command_has_at_most_40_flags(command: str) -> None:
    said = subprocess.run([sys.executable, "-m", "finetune", command, "--help"], check=True, capture_output=True, text=True).stdout
    flags = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", said, re.M))  # a help text that wraps can begin with another flag's name
    assert 20 < len(flags - {"--help"}) <= 40


def test_nothing_is_unpickled() -> None:
    banned = ("import pickle", "pickle.load", "eval(", "exec(", "trust_remote_code", "shell=True", "yaml.load(")
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8").replace(".eval()", "").replace("def eval(self)", "").replace('typ="safe"', "")
        assert not [b for b in banned if b in text], path
        assert all("weights_only=True" in line for line in text.splitlines() if "torch.load(" in line), path


def test_the_embedded_base_names_no_place_on_anybodys_machine() -> None:
    for path in (PACKAGE / "bases").rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


def test_the_journey_in_the_architecture_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    hops = re.findall(r"^\| \d \| `([\w/.]+)` \| `(\w+)` \|", text, re.M)
    assert 6 <= len(hops) <= 8 and len({file for file, _ in hops}) <= 6
    for file, function in hops:
        assert re.search(rf"def {function}\(", (ROOT / file).read_text(encoding="utf-8")), (file, function)
    for file in re.findall(r"`(finetune/[\w/]+\.py)`", text):
        assert (ROOT / file).is_file(), file
    rooms_drawn = set(re.findall(r"\b[a-z]+\b", text[text.index("foundations:") : text.index("## The journey")]))
    assert rooms_drawn >= MAY_IMPORT.keys()
