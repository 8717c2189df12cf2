"""What the headers of all kinds of files say to other tools, and what they keep to themselves."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
from parts import Bases, Make

from finetune import config
from finetune.adapters.contract import KEY, Contract
from finetune.config.precedence import merge_settings
from finetune.header import header_of
from finetune.results import record
from finetune.training import average
from finetune.training.run import train

STABILITY, BFL = "https://github.com/Stability-AI/generative-models", "https://github.com/black-forest-labs/flux"
SD, SD2, XL, FLUX = "stable-diffusion-v1", "stable-diffusion-v2-768-v", "stable-diffusion-xl-v1-base", "flux-1-dev"
LORA: dict[str, Any] = {"kind": "lora", "rank": 2, "alpha": 1}
WORD: dict[str, Any] = {"kind": "none", "new_tokens": ["<x>"]}
CASES = [  # base, what trains, ModelSpec's architecture and implementation as sd-scripts has them
    ("sd", LORA, f"{SD}/lora", "diffusers"),
    ("sd", {"kind": "loha", "rank": 2}, f"{SD}/lora", "diffusers"),
    ("sd", WORD, f"{SD}/textual-inversion", STABILITY),
    ("sd", {"kind": "full"}, SD, STABILITY),
    ("sdxl", LORA, f"{XL}/lora", STABILITY),
    ("sdxl", WORD, f"{XL}/textual-inversion", STABILITY),
    ("sdxl", {"kind": "full"}, XL, STABILITY),
    ("flux", LORA, f"{FLUX}/lora", BFL),
    ("flux", WORD, f"{FLUX}/textual-inversion", BFL),
]


@pytest.fixture
def make(settings: Callable[..., dict[str, Any]], bases: Bases) -> Make:
    def one_step(of: str, method: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        form = {"format": "single"} if method["kind"] == "full" else {}
        small = {"model": {"base": str(bases(of))}, "method": dict(method), "data": {"resolution": 16}, "optim": {"steps": 1}, "run": form}
        return settings(**merge_settings(small, more))

    return one_step


def written(summary: Mapping[str, Any]) -> list[Path]:
    return [Path(summary[kind]) for kind in summary["files"]]


def facts_of(job: dict[str, Any]) -> dict[str, str]:
    (path,) = written(train(config.parse(job)))
    return header_of(path).metadata


@pytest.mark.parametrize(("of", "method", "architecture", "implementation"), CASES, ids=lambda x: x["kind"] if isinstance(x, dict) else "")
def test_a_header_says_what_sd_scripts_would(of: str, method: Any, architecture: str, implementation: str, make: Make) -> None:
    (path,) = written(train(config.parse(make(of, method))))
    facts, data = header_of(path).metadata, path.read_bytes()
    assert facts["modelspec.architecture"] == architecture and facts["modelspec.implementation"] == implementation
    assert facts["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert facts["ss_num_train_images"] == "7" and "ss_tag_frequency" not in facts
    assert facts.get("modelspec.prediction_type") == (None if of == "flux" else "epsilon")
    contract = json.loads(facts[KEY])
    adapts = method["kind"] not in ("none", "full")
    assert contract["adapter"] == (method["kind"] if adapts else None) and contract["rank"] == (2 if adapts else 0)
    assert Contract.of(facts) == Contract(**contract) and ("ss_network_dim" in facts) == adapts


def test_a_word_beside_an_adapter_says_nothing_of_the_adapter(make: Make) -> None:
    summary = train(config.parse(make("sd", LORA | {"new_tokens": ["<x>"]}, optim={"steps": 2})))
    said = [Contract.of(header_of(Path(summary[kind])).metadata) for kind in ("adapter", "embedding")]
    assert [(c.adapter, c.rank, c.training_alpha) for c in said if c] == [("lora", 2, 1.0), (None, 0, 0.0)]


@pytest.mark.parametrize("adapter", [{}, {"adapter": "lora"}, {"adapter": "dora"}])
def test_a_header_of_an_earlier_version_is_read(adapter: dict[str, str], make: Make) -> None:
    """Which had no `adapter`, or said lora of words and whole models."""
    facts = facts_of(make("sd", WORD))
    old = {k: v for k, v in json.loads(facts[KEY]).items() if k != "adapter"} | adapter
    read = Contract.of({KEY: json.dumps(old)})
    assert read and read.adapter == adapter.get("adapter", "lora") and read.base == "sd"
    assert Contract.of({KEY: json.dumps(old | {"adapter": 1})}) is None


def tagged(root: Path) -> Path:
    """Two folders of pictures, one shown four times an epoch, captioned with tags."""
    for folder, count in (("4_private place", 2), ("1_another", 1)):
        tiny.folder(root / folder, count)
        for i, path in enumerate(sorted((root / folder).glob("*.txt"))):
            path.write_text(("Red, disc", "blue, disc,, ")[i], encoding="utf-8")
    return root


def test_tags_are_counted_only_where_they_may_be_published(make: Make, tmp_path: Path) -> None:
    silent = make("sd", LORA, data={"path": str(tagged(tmp_path / "data"))})
    facts = facts_of(silent)
    assert facts["ss_num_train_images"] == "9" and not {"ss_tag_frequency", "ss_dataset_dirs"} & facts.keys()
    assert "disc" not in str(facts) and "private" not in str(facts)
    told = facts_of(merge_settings(silent, {"run": {"publish_tags": True}}))  # the run is finished: it writes its file again
    assert json.loads(told["ss_tag_frequency"]) == {"pictures": {"red": 2, "blue": 1, "disc": 3}}
    assert "private" not in str(told) and "another" not in str(told)
    assert facts_of(silent) == facts


def test_a_run_of_an_earlier_version_goes_on_and_stays_finished(make: Make, tmp_path: Path) -> None:
    job = make("sd", LORA)
    summary = train(config.parse(job))
    assert "run.publish_tags" not in record.identity(config.parse(job), {}, 1) and "publish_tags" not in summary["written_as"]
    recipe = tmp_path / "out" / "run.yaml"
    recipe.write_text("".join(line for line in recipe.read_text().splitlines(keepends=True) if "publish_tags" not in line))
    stamp = Path(summary["adapter"]).stat().st_mtime_ns
    assert train(config.parse(job)) == summary and Path(summary["adapter"]).stat().st_mtime_ns == stamp
    assert train(config.parse(merge_settings(job, {"optim": {"steps": 2}})))["steps"] == 2


def test_an_average_says_of_the_data_what_the_runs_file_says(make: Make, tmp_path: Path) -> None:
    more = {"data": {"path": str(tagged(tmp_path / "data"))}, "optim": {"ema_posthoc": True}, "run": {"publish_tags": True}}
    facts = facts_of(make("sd", LORA, **more))
    made = header_of(average.write(tmp_path / "out", 0.1, None)["adapter"]).metadata
    assert made["ss_tag_frequency"] == facts["ss_tag_frequency"] and made["ss_num_train_images"] == "9"
    recipe = tmp_path / "out" / "run.yaml"
    recipe.write_text(recipe.read_text().replace("publish_tags: true", "publish_tags: false"))
    assert "ss_tag_frequency" not in header_of(average.write(tmp_path / "out", 0.1, None)["adapter"]).metadata
