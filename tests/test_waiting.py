"""Waiting for nothing: what is imported, looked through, read and downloaded without need."""

import functools
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import DryRunFileInfo
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # not marked as exported
from safetensors.torch import save_file

from finetune import cli, config, files
from finetune.bases import TINY
from finetune.families import source
from finetune.results import finished

DRY_RUN = ["lora", "--caption", "x", "--base", "tiny", "--dry-run"]


def children() -> float:
    """Seconds of CPU that finished child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_nothing_is_imported_that_nobody_asked_for(imgs: Path, tmp_path: Path) -> None:
    """bitsandbytes brings torch's compiler with it; an optimizer of its finds it all the same."""
    program = f"""
import gc, sys
from finetune import cli, libraries
libraries.set_aside("bitsandbytes")
assert cli.run({[*DRY_RUN, "--data", str(imgs), "--out", str(tmp_path)]}) == 0
assert "torch" in sys.modules and not sys.modules["bitsandbytes"] and "torch._inductor.compile_fx" not in sys.modules
assert cli.run({[*DRY_RUN, "--data", str(imgs), "--out", str(tmp_path), "--optimizer", "adamw8bit"]}) == 0
import bitsandbytes"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_plan_takes_little_more_cpu_than_its_libraries(imgs: Path, tmp_path: Path) -> None:
    """Seconds depend on what else the machine does: 3.4 on two idle cores, where importing torch and diffusers alone takes 2.6."""

    def cpu(*words: str) -> float:
        before = children()
        subprocess.run([sys.executable, *words], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return children() - before

    ours = ["-m", "finetune", *DRY_RUN, "--data", str(imgs), "--out", str(tmp_path)]
    ratios = sorted(cpu(*ours) / cpu("-c", "import torch, diffusers") for _ in range(3))
    assert ratios[1] <= 1.5, ratios


HUB = {  # file -> bytes, as the base's repository has them
    "model_index.json": 541,
    "unet/config.json": 743,
    "unet/diffusion_pytorch_model.safetensors": 3_438_167_540,
    "unet/diffusion_pytorch_model.fp16.safetensors": 1_719_125_304,
    "unet/diffusion_pytorch_model.non_ema.safetensors": 3_438_167_540,
    "text_encoder/model-00001-of-00002.safetensors": 400_000_000,
    "text_encoder/model.fp16-00001-of-00002.safetensors": 200_000_000,
    "safety_checker/model.safetensors": 1_215_981_830,
    "v1-5-pruned.safetensors": 7_703_324_286,
}
PLAIN = {"unet/diffusion_pytorch_model.safetensors", "text_encoder/model-00001-of-00002.safetensors"}
FP16 = {"unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16-00001-of-00002.safetensors"}


@pytest.mark.parametrize(("variant", "weights", "said"), [(None, PLAIN, "3.84 GB in 4 files"), ("fp16", FP16, "1.92 GB in 4 files")])
def test_one_variant_is_downloaded_and_its_size_is_said_before(
    variant: str | None, weights: set[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def download(hub_id: str, dry_run: bool = False, revision: str | None = None, **patterns: Any) -> Any:
        wanted = set(filter_repo_objects(HUB, **patterns))
        if dry_run:
            return [DryRunFileInfo("c0ffee", HUB[f], f, str(tmp_path / f), False, True) for f in wanted]
        assert f"downloading {hub_id}: {said}" in capsys.readouterr().err, "said before"
        asked.append(wanted)
        return str(shutil.copytree(TINY, tmp_path / "base"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source.resolve_base("owner/name", variant)
    assert asked == [weights | {"model_index.json", "unet/config.json"}]


def test_a_base_in_the_cache_is_used_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--owner--name"
    shutil.copytree(TINY, repository / "snapshots" / "c0ffee")
    files.write_text(repository / "refs" / "main", "c0ffee")
    here = functools.partial(huggingface_hub.snapshot_download, cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", here)
    assert source.resolve_base("owner/name").folder == repository / "snapshots" / "c0ffee"


def test_a_base_can_be_downloaded_ahead(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda _, dry_run=False, **__: [] if dry_run else str(TINY))
    assert cli.run(["models", "--download", "sd15"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{TINY}\n" and "downloading" not in said.err, "what is here is not announced"
    assert cli.run(["models", "--download", "nosuch"]) == 4


MISSING = [
    "lora --data nosuch", "lora --data . --base ./nosuch", "lora --data . --base a/nosuch.safetensors", "lora --data . --holdout nosuch",
    "lora --data . --set method.start=nosuch.safetensors", "generate --prompt x --adapter nosuch.safetensors:0.5",
    "generate --prompt x --embedding nosuch.safetensors", "generate --prompt x --base nosuch", "adapter verify nosuch.safetensors",
    "adapter convert nosuch.safetensors --to kohya", "adapter average nosuch --length 0.1", "adapter inspect nosuch.safetensors",
    "data check --data nosuch", "data preview --data nosuch", "data caption --data nosuch --model x",
]  # fmt: skip


def test_a_header_is_read_without_torch(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    keys = {f"lora_unet_mid_block_attentions_0_proj_in.{leaf}.weight": torch.ones(4, 4) for leaf in ("lora_down", "lora_up")}
    save_file(keys, file)
    program = """
import sys
from finetune import cli
assert cli.run(["adapter", "inspect", sys.argv[1]]) == 0
assert "torch" not in sys.modules"""
    done = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True)
    assert done.returncode == 0 and "lora 1" in done.stdout, done.stderr


def test_what_is_missing_is_refused_before_a_library_is_imported(tmp_path: Path) -> None:
    program = f"""
import sys
from finetune import cli
for words in {MISSING}:
    assert cli.run(words.split()) in (3, 4), words
    assert "torch" not in sys.modules, words"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr.count("nosuch") >= len(MISSING), done.stderr


def test_a_finished_run_is_known_without_torch_until_something_changes(imgs: Path, base: Path, tmp_path: Path) -> None:
    data = shutil.copytree(imgs, tmp_path / "data")
    words = ["lora", "--data", str(data), "--base", str(base), "--steps", "1", "--out", str(tmp_path / "out"), "--json"]
    assert cli.run(words) == 0
    program = """
import sys
from finetune import cli
code = cli.run(sys.argv[1:])
sys.exit(code or (9 if "torch" in sys.modules else 0))"""
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "already finished: 1 steps" in done.stderr, done.stderr
    assert json.loads(done.stdout)["steps"] == 1
    job = config.parse(config.read_yaml(tmp_path / "out" / "run.yaml"))
    assert finished.summary(job)
    changes = [data / "00.txt", tmp_path / "out" / "lora.safetensors", base / "unet" / "config.json"]
    for path in changes:
        before = path.stat()
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        assert finished.summary(job) is None, path
        assert cli.run(words) == 0, "looked at in full: it is finished all the same"
        assert finished.summary(job), "and known again"
    assert finished.summary(job.model_copy(update={"optim": job.optim.model_copy(update={"lr": 1e-5})})) is None
