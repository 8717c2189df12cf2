"""One normaliser: 1 process, N processes and accumulation give the same gradient, partial batches and weights included."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradients
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from finetune import config
from finetune.data.index_plan import IndexPlan
from finetune.data.sample import UNKNOWN, Sample

Settings = Callable[..., dict[str, Any]]
Gradients = Callable[[str, torch.dtype], dict[str, Tensor]]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest relative one of a tensor; some, such as the bias of an attention's keys, have a gradient of 0 but for rounding."""
    assert a.keys() == b.keys() and a
    least = 1e-2 * max(float(g.norm()) for g in a.values())
    return max(float((a[n] - b[n]).norm()) / max(float(a[n].norm()), least) for n in a)


METHODS: dict[str, dict[str, Any]] = {
    "adapter": {},
    "dreambooth": {
        "subject": {"token": "sks", "class_word": "disc", "class_count": 3, "class_steps": 2, "prior_weight": 0.3},
        "method": {"kind": "full", "text_encoder": True},
    },
    "pivotal": {"method": {"new_tokens": ["<x>"], "vectors": 2}},
    "preserved": {  # two calls of what DDP wraps, and one of what it does not
        "objective": {"preserve": "thing", "stratified": True, "noise_offset": 0.1, "pyramid_levels": 2, "input_perturbation": 0.1},
        "data": {"trigger": "sks"},
    },
    "decoder": {"method": {"kind": "decoder"}, "data": {"caption_dropout": 0.0}, "run": {"save_dtype": "fp32"}},
}


BOTH = (torch.float32, torch.float64)
# Of a decoder in fp64 alone: the gradient of L1 is a sign, which the rounding of fp32 could turn near 0.
CELLS = [(n, d) for n in METHODS for d in BOTH if (n, d) != ("decoder", torch.float32)]


@pytest.mark.parametrize(("name", "dtype"), CELLS)
@pytest.mark.parametrize("step", [0, 1])  # 7 pictures in global batches of 4: the second batch reaches over the end of an epoch
def test_accumulation_is_exact(settings: Settings, dtype: torch.dtype, step: int, name: str) -> None:
    own = METHODS[name]
    whole = gradients.gradients(settings(optim={"batch": 4}, **own), dtype, step)
    parts = gradients.gradients(settings(optim={"batch": 2, "accumulate": 2}, **own), dtype, step)
    ones = gradients.gradients(settings(optim={"batch": 1, "accumulate": 4}, **own), dtype, step)
    assert difference(whole, parts) < TOLERANCE[dtype]
    assert difference(whole, ones) < TOLERANCE[dtype]


def torchrun(*words: str) -> "subprocess.CompletedProcess[str]":
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0"]
    return subprocess.run([*launch, *words], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


SPLIT = [(n, d) for n in METHODS for d in BOTH if n == "adapter" or d == torch.float64]


@pytest.fixture(scope="module")
def of_two_processes(base: Path, imgs: Path, tmp_path_factory: pytest.TempPathFactory) -> Gradients:
    """The gradients of each of `SPLIT`, all by one pair of processes: a pair for each would take 10 seconds more of CPU."""
    root, asked = tmp_path_factory.mktemp("two"), []
    for name, dtype in SPLIT:
        at = root / f"{name}-{dtype}"
        job = config.parse(tiny.job(base, imgs, at, optim={"batch": 2}, **METHODS[name]))
        Path(f"{at}.yaml").write_text(config.dump(job), encoding="utf-8")
        asked.append([f"{at}.yaml", str(dtype).removeprefix("torch."), f"{at}.safetensors"])
    done = torchrun(gradients.__file__, json.dumps(asked))
    assert done.returncode == 0, done.stderr[-2000:]
    return lambda name, dtype: load_file(root / f"{name}-{dtype}.safetensors")


@pytest.mark.parametrize(("name", "dtype"), SPLIT)
def test_two_processes_are_exact(settings: Settings, of_two_processes: Gradients, dtype: torch.dtype, name: str) -> None:
    whole = gradients.gradients(settings(optim={"batch": 4}, **METHODS[name]), dtype, 1)
    assert difference(whole, of_two_processes(name, dtype)) < TOLERANCE[dtype]


def test_two_processes_train_one_adapter(settings: Settings, train: Any, tmp_path: Path) -> None:
    one = load_file(train(optim={"batch": 4}, run={"out": str(tmp_path / "one")})["adapter"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.dump(config.parse(settings(optim={"batch": 2}, run={"processes": 2}))), encoding="utf-8")
    done = torchrun("-m", "finetune", "lora", "--recipe", str(recipe))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("wrote") == 1
    two = load_file(tmp_path / "out" / "lora.safetensors")
    assert one.keys() == two.keys()
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-5


def test_another_number_of_processes_is_refused(settings: Settings, train: Any) -> None:
    from finetune.errors import ConfigError

    with pytest.raises(ConfigError, match="2 processes were asked for, 1 run"):
        train(run={"processes": 2})


def samples(count: int) -> list[Sample]:
    return [tiny.sample(f"{i}", f"{i}", ("a",)) for i in range(count)]


@pytest.mark.parametrize(("count", "batch", "world"), [(c, b, w) for c in (1, 3, 7, 8) for b, w in ((1, 1), (4, 1), (4, 2), (6, 3))])
def test_every_split_of_a_batch_holds_the_same_slots(count: int, batch: int, world: int) -> None:
    plan = IndexPlan(samples(count), batch, seed=3)
    for step in range(3 * count):
        size = batch // world
        merged = [s for rank in range(world) for micro in plan.micro_batches(step, size, rank, world) for s in micro]
        assert sorted(merged, key=lambda s: s.slot) == plan.slots(step)
    (group,) = plan.groups
    steps = group.count(0)
    epochs = [tuple(s.sample for step in range(e * steps, (e + 1) * steps) for s in plan.slots(step))[:count] for e in range(3)]
    assert all(sorted(e) == list(range(count)) for e in epochs), "an epoch shows every picture once"
    assert len(set(epochs)) == 3 or count < 7


@pytest.mark.parametrize(("batch", "world"), [(2, 1), (4, 1), (4, 2), (6, 3)])
@pytest.mark.parametrize("groups", [(3, 20), (8, 2), (1, 1)])
def test_every_batch_holds_as_many_class_pictures(groups: tuple[int, int], batch: int, world: int) -> None:
    plan = IndexPlan([replace(s, weight=1.0 if i < groups[0] else 0.5) for i, s in enumerate(samples(sum(groups)))], batch, 3, groups)
    for step in range(2 * max(groups)):
        slots = plan.slots(step)
        assert sum(s.sample >= groups[0] for s in slots) == batch // 2 and plan.total_weight(step) == 0.75 * batch
        merged = [s for rank in range(world) for micro in plan.micro_batches(step, batch // world, rank, world) for s in micro]
        assert sorted(merged, key=lambda s: s.slot) == slots
    shown = [s.sample for step in range(groups[1]) for s in plan.slots(step) if s.sample >= groups[0]]
    assert set(shown[: groups[1]]) == set(range(groups[0], sum(groups))), "all class pictures are used"


def test_a_new_picture_moves_no_other() -> None:
    few, more = (IndexPlan(samples(n), 2, 0).groups[0].order(UNKNOWN, 5) for n in (6, 7))
    assert [i for i in more if i < 6] == list(few)
