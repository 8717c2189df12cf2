"""The bounds of docs/limits.md: each is what the page says, holds at the bound, and refuses one past it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import files, header, tensor_files
from finetune.adapters import embedding, inspect, problems, strength
from finetune.config import precedence as settings
from finetune.config import yaml
from finetune.data import decode, file
from finetune.errors import ConfigError, DataError
from finetune.families import contents
from finetune.methods import adapter
from finetune.sampling import generate

PAGE = (Path(__file__).parents[1] / "docs" / "limits.md").read_text(encoding="utf-8")
SAID = [
    ("YAML", [yaml.MOST_LETTERS, yaml.DEPTH]),
    ("regular expressions", [adapter.MOST_PATTERN, int(adapter.PATIENCE)]),
    ("`alpha_pattern`", [strength.MOST_WILD]),
    ("names of tensors", [header.MOST_KEY]),
    ("an adapter's change", [problems.MOST_NUMBERS]),
    ("vectors of one token", [embedding.MOST_VECTORS]),
    ("what a contract asks for", [generate.MOST_SIDE, generate.MOST_STEPS, generate.MOST]),
    ("a text from a header", [inspect.MOST_TEXT]),
    ("JSON files of a base", [contents.MOST_BYTES >> 20]),
    ("sizes in a network's config", [contents.MOST_NUMBER, contents.MOST_LAYERS, contents.MOST_BLOCKS]),
    ("one file that is read as a whole", [file.MOST >> 30]),
    ("pixels of a picture", [decode.MOST_PIXELS]),
    ("memory that all threads", [decode.ROOM >> 30]),
    ("mistakes in a recipe", [settings.MOST_MISTAKES]),
]


@pytest.mark.parametrize(("what", "numbers"), SAID)
def test_the_page_says_what_holds(what: str, numbers: list[int]) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {what}")]
    assert all(str(number) in row.split("|")[2] for number in numbers)
    assert sum(line.startswith("| ") for line in PAGE.splitlines()) == len(SAID) + 1


def _yaml(text: str) -> Any:
    return yaml.parsed(text)


def _file(size: int, tmp_path: Path) -> bytes:
    (tmp_path / "x").write_bytes(b"x" * size)
    return file.read_file(str(tmp_path / "x"))


def _config(**values: Any) -> Any:
    return contents.cleaned("unet", "config.json", values)


def _patterns(count: int) -> Any:
    return strength.Patterns.of({"alpha_pattern": {f"a{i}.*": 1.0 for i in range(count)}})


def _embedding(vectors: int, tmp_path: Path) -> Any:
    files.write_bytes(tmp_path / "x.safetensors", tensor_files.safetensors({"emb_params": torch.zeros(vectors, 2)}, {}))
    return embedding.read(tmp_path / "x.safetensors")


def _key(letters: int, tmp_path: Path) -> Any:
    files.write_bytes(tmp_path / "x.safetensors", tensor_files.safetensors({"k" * letters: torch.zeros(1)}, {}))
    return header.header_of(tmp_path / "x.safetensors")


def _change(side: int, tmp_path: Path) -> Any:
    """A LoRA of rank 1 on one layer of `side` times `side` weights."""
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    made = {
        f"{name}.lora_down.weight": torch.zeros(1, side),
        f"{name}.lora_up.weight": torch.zeros(side, 1),
        f"{name}.alpha": torch.ones(()),
    }
    files.write_bytes(tmp_path / "x.safetensors", tensor_files.safetensors(made, {}))
    wrong = [p for p in inspect.inspect(tmp_path / "x.safetensors").problems if "are believed" in p]
    if wrong:
        raise DataError(wrong[0])


BOUNDS: list[tuple[str, Callable[[int, Path], Any], int]] = [
    ("letters of YAML", lambda n, _: _yaml("'" + "x" * (n - 2) + "'"), yaml.MOST_LETTERS),
    ("levels of YAML", lambda n, _: _yaml("[" * n + "]" * n), yaml.DEPTH),
    ("letters of a pattern", lambda n, _: adapter.searched("x", "a" * n, {}), adapter.MOST_PATTERN),
    ("patterns", lambda n, _: _patterns(n), strength.MOST_WILD),
    ("letters of a key", _key, header.MOST_KEY),
    ("vectors", _embedding, embedding.MOST_VECTORS),
    ("a layer's change", _change, int(problems.MOST_NUMBERS**0.5)),
    ("a size", lambda n, _: _config(sample_size=n), contents.MOST_NUMBER),
    ("layers", lambda n, _: _config(layers_per_block=n), contents.MOST_LAYERS),
    ("blocks", lambda n, _: _config(block_out_channels=[8] * n), contents.MOST_BLOCKS),
]


@pytest.mark.parametrize(("what", "read", "most"), BOUNDS, ids=[b[0] for b in BOUNDS])
def test_at_the_bound_and_past_it(what: str, read: Callable[[int, Path], Any], most: int, tmp_path: Path) -> None:
    read(most, tmp_path)
    with pytest.raises((ValueError, ConfigError, DataError)) as raised:
        read(most + 1, tmp_path)
    assert str(raised.value)


def test_files_at_the_bound_and_past_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MOST", 10)
    monkeypatch.setattr(contents, "MOST_BYTES", 10)
    assert _file(10, tmp_path) == b"x" * 10
    with pytest.raises(DataError, match="has more than"):
        _file(11, tmp_path)
    for text, most in (('{"a":1}   ', True), ('{"a":1}    ', False)):
        (tmp_path / "x.json").write_text(text)
        if most:
            assert contents.read_json(tmp_path / "x.json") == {"a": 1}
        else:
            with pytest.raises(ValueError, match="has more than"):
                contents.read_json(tmp_path / "x.json")


def test_many_mistakes_are_not_all_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        settings.parse({f"k{i}": 1 for i in range(5000)})
    assert raised.value.message.count("\n") == settings.MOST_MISTAKES and "and 4981 more" in raised.value.message
    assert len(raised.value.message) < settings.MOST_MISTAKES * 420


@pytest.mark.parametrize("pattern", ["([a-z]+)+!", "a|b", "a[0]", "(a)", "a?", "a+", "a$"])
def test_patterns_of_files_are_names(pattern: str) -> None:
    with pytest.raises(ValueError, match="is no layer's name"):
        strength.Patterns.of({"alpha_pattern": {pattern: 1.0}})


@pytest.mark.parametrize(("pattern", "module", "fits"), [
    ("attn1.to_q", "mid.attn1.to_q", True), ("attn1.to_q", "mid.xattn1.to_q", False), ("^attn1.to_q", "mid.attn1.to_q", False),
    ("^mid.attn1.to_q", "mid.attn1.to_q", True), ("mid.*to_q", "mid.attn1.to_q", True), ("mid.*to_q", "down.mid.a.b.to_q", True),
    (r"attn1\.to_q", "mid.attn1.to_q", True), ("a.*b.*c", "x.a1c2b3c", True), ("a.*b.*c", "x.a1c2c", False), (".*", "anything", True),
])  # fmt: skip
def test_patterns_of_files_find_what_peft_finds(pattern: str, module: str, fits: bool) -> None:
    import re

    found = strength.Patterns.of({"alpha_pattern": {pattern: 2.0}}).find(module)
    assert (found == 2.0) == fits == bool(re.match(rf"(.*\.)?({pattern})$", module))


def test_the_first_pattern_counts() -> None:
    patterns = strength.Patterns.of({"alpha_pattern": {"a.*": 1.0, "a.b": 2.0, "b": 3.0}})
    assert (patterns.find("x.a.b"), patterns.find("a.c"), patterns.find("x.b"), patterns.find("c")) == (1.0, 1.0, 3.0, None)


def test_json_is_counted_in_time_that_grows_as_it_does(tmp_path: Path) -> None:
    import time

    names = json.dumps({"k": 1})[1:-1]
    data = ("{" + ", ".join([names] * 300_000) + "}").encode()
    (tmp_path / "x.safetensors").write_bytes(len(data).to_bytes(8, "little") + data)
    began = time.process_time()
    with pytest.raises(DataError):
        header.header_of(tmp_path / "x.safetensors")
    assert time.process_time() - began < 3


@pytest.mark.parametrize("value", ["", "1", [], {}, True, float("inf"), float("nan")])
def test_a_strength_is_a_number(value: object, tmp_path: Path) -> None:
    for config in ({"lora_alpha": value, "r": 4}, {"lora_alpha": 1, "r": value}, {"lora_alpha": 1, "r": 4, "alpha_pattern": {"a": value}}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(DataError, match="no readable r and lora_alpha"):
            strength.alphas_of(tmp_path, {})
