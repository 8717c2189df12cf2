"""A family that nobody has: its own files in a copy of the package, nothing else touched, and every command works on it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from invented import pipeline
from safetensors import safe_open

ROOT = Path(__file__).parents[1]
INVENTED = ROOT / "tests" / "invented"
PLACES = {"facts.py": "families/facts/quill.py", "names.py": "families/names/quill.py", "network.py": "families/quill.py"}
PROGRAM = """
import json, sys
from finetune import cli
for words in json.loads(sys.argv[1]):
    print("$ ft", *words, flush=True)
    print("exit", cli.run(words), flush=True)
"""


def linked(folder: Path, target: Path) -> None:
    """A folder whose entries are links to those of another."""
    folder.mkdir(parents=True)
    for entry in target.iterdir():
        if entry.name != "__pycache__":
            (folder / entry.name).symlink_to(entry)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is, with the invented family's files and no other change."""
    root = tmp_path_factory.mktemp("invented")
    linked(root / "finetune", ROOT / "finetune")
    for room in ("families", "families/facts", "families/names"):
        (root / "finetune" / room).unlink()
        linked(root / "finetune" / room, ROOT / "finetune" / room)
    for name, place in PLACES.items():
        (root / "finetune" / place).write_text((INVENTED / name).read_text(encoding="utf-8"), encoding="utf-8")
    pipeline.quill(root / "base")
    tiny.folder(root / "imgs")
    return root


def ft(package: Path, *commands: list[str]) -> "subprocess.CompletedProcess[str]":
    """Commands in one process, one after the other, each with its exit code on a line of its own."""
    env = os.environ | {"PYTHONPATH": str(package), "FT_CACHE": str(package / "cache")}
    program = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    return subprocess.run(program, capture_output=True, text=True, env=env, cwd=package)


def codes(done: "subprocess.CompletedProcess[str]") -> list[int]:
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("exit ")]


def keys(path: Path) -> list[str]:
    with safe_open(path, "pt") as f:
        return sorted(f.keys())


def metrics(package: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (package / "out" / "metrics.jsonl").read_text().splitlines()]


def test_a_family_is_its_own_files_and_nothing_else(package: Path) -> None:
    lora = ["lora", "--data", "imgs", "--base", "base", "--out", "out", "--batch", "2", "--rank", "2", "--alpha", "1", "--lr", "1e-3"]
    lora += ["--holdout", "0.3", "--sample-prompt", "red disc", "--set", "run.holdout_every=12", "--seed", "1"]
    file, kohya, back = "out/lora.safetensors", "out/kohya.safetensors", "out/back.safetensors"
    done = ft(
        package,
        [*lora, "--steps", "12", "--dry-run"],
        [*lora, "--steps", "12"],
        [*lora, "--steps", "14"],  # goes on
        ["adapter", "inspect", file],
        ["adapter", "verify", file, "--base", "base"],
        ["adapter", "convert", file, "--to", "kohya", "--out", kohya],
        ["adapter", "inspect", kohya],
        ["adapter", "convert", kohya, "--to", "diffusers", "--out", back],
        ["adapter", "verify", back, "--base", "base"],
        ["generate", "--adapter", kohya, "--base", "base", "--prompt", "blue disc", "--steps", "2", "--out", "drawn"],
        ["data", "check", "--data", "imgs", "--base", "base"],
    )  # fmt: skip
    assert codes(done) == [0] * 11, done.stderr[-3000:] + done.stdout[-2000:]
    assert "resuming from step 12" in done.stderr and done.stdout.count("landed   8 of 8 modules") == 2
    assert done.stdout.count("diffusers the same within") == 2
    # diffusers' names; the original's, with queries, keys and values fused; and diffusers' again.
    assert "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight" in keys(package / file)
    written = keys(package / kohya)
    assert "lora_quill_quills_0_look_qkv.lora_down.weight" in written and len(written) == 3 * 4
    assert keys(package / back) == keys(package / file)
    held = [row["held_out_loss"] for row in metrics(package) if "held_out_loss" in row]
    assert len(held) == 3 and held[1] != held[0]
    assert len(list((package / "out" / "samples").glob("step-000000-*.png"))) == 1 and list((package / "drawn").glob("*.png"))


def test_what_it_does_not_know_is_refused_before_anything_is_loaded(package: Path) -> None:
    for key, value in (("patch_size", 4), ("in_channels", 8)):
        shutil.copytree(package / "base", package / key)
        config = package / key / "transformer" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    done = ft(package, *(["lora", "--data", "imgs", "--base", base, "--dry-run"] for base in ("patch_size", "in_channels")))
    assert codes(done) == [4, 4]
    assert "transformer has patch_size 4; quill is known with 2" in done.stderr
    assert "its transformer.in_channels is 8, and vae.latent_channels 4 do not add up to it" in done.stderr


def test_without_its_files_it_is_no_family(package: Path) -> None:
    from finetune.errors import AccessError
    from finetune.families import source

    with pytest.raises(AccessError, match="its pipeline is CogView4Pipeline; known are"):
        source.resolve_base(str(package / "base"))
