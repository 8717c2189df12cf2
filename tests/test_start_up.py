"""What is missing is said before the libraries are imported that would read it; and no library is imported for nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

PROGRAM = """
import sys
from finetune import cli
code = cli.run(sys.argv[1:])
heavy = [m for m in ("torch", "diffusers", "transformers", "datasets") if sys.modules.get(m)]
sys.exit(f"imported {heavy}" if heavy else code)
"""
# exit code, words ({tmp} is filled in), what is said
QUICK = [
    (3, "lora --data {tmp}/nothing", "nothing: no such folder or file"),
    (3, "lora --data {tmp}/imgs --holdout {tmp}/nothing --dry-run", "nothing: no such folder or file"),
    (4, "lora --data {tmp}/imgs --base nosuch", "--base nosuch: no such folder"),
    (4, "dreambooth --data {tmp}/imgs --token sks --class dog --base {tmp}/none.safetensors", "none.safetensors: no such file"),
    (3, "lora --data {tmp}/imgs --set method.start={tmp}/none.safetensors", "none.safetensors: no such adapter file"),
    (2, "lora --data {tmp}/imgs --recipe {tmp}/none.yaml", "none.yaml: no such file"),
    (3, "data check --data {tmp}/nothing", "nothing: no such folder or file"),
    (3, "generate --prompt x --adapter {tmp}/none.safetensors:0.5", "none.safetensors: no such adapter file"),
    (3, "generate --prompt x --embedding {tmp}/none.safetensors", "none.safetensors: no such adapter file"),
    (4, "generate --prompt x --base {tmp}/none", "none: no such folder"),
    (3, "adapter convert {tmp}/none.safetensors --to peft", "none.safetensors: no such adapter file"),
    (3, "adapter verify {tmp}/none.safetensors", "none.safetensors: no such adapter file"),
    (3, "adapter inspect {tmp}/bad.safetensors", "bad.safetensors: not a readable safetensors file"),
    (0, "adapter inspect {file}", ""),
]


@pytest.mark.parametrize(("code", "words", "said"), QUICK)
def test_what_is_missing_is_said_without_torch(code: int, words: str, said: str, tmp_path: Path) -> None:
    import torch

    from finetune import files

    tiny.folder(tmp_path / "imgs", 1)
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    pair = {"lora_down": torch.zeros(1, 4), "lora_up": torch.zeros(4, 1), "alpha": torch.ones(())}
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    weights = {f"{name}.{k}" + (".weight" if k != "alpha" else ""): t for k, t in pair.items()}
    (tmp_path / "own.safetensors").write_bytes(files.safetensors(weights, {}))
    arguments = words.format(tmp=tmp_path, file=tmp_path / "own.safetensors").split()
    made = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert (made.returncode, said in made.stderr) == (code, True), made.stderr


def test_bitsandbytes_is_imported_by_what_asks_for_it_alone(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "imgs", 1)
    program = """
import sys
from finetune import cli
try:
    cli.main()
except SystemExit as done:
    code = done.code
sys.exit(code or (3 if sys.modules.get("bitsandbytes") else 0))
"""
    words = ["lora", "--data", "imgs", "--base", "tiny", "--dry-run"]
    made = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
