"""Who reads which file, and how well: the table against the readers that can be installed, and the documents against the table."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from parts import Bases
from torch import Tensor

from finetune.adapters import compatibility
from finetune.adapters.compatibility import readings
from finetune.adapters.fused import lora
from finetune.adapters.read import read
from finetune.adapters.weights import Weights
from finetune.adapters.write import export
from finetune.families import load, source
from finetune.families.catalogue import FAMILIES
from finetune.families.names.readers import EXACT, PART, TOOLS, UNREAD, WRONG, Traits
from finetune.families.spec import FamilySpec

pytestmark = pytest.mark.filterwarnings("ignore")  # the readers' own
ENDS = ("attn1.to_q", "attn2.to_k", "attn.to_q", "attn.add_k_proj")


def weights(kind: str, shape: tuple[int, ...]) -> Weights:
    g = torch.Generator().manual_seed(sum(shape))

    def random(*s: int) -> Tensor:
        return torch.randn(*s, generator=g) / 4

    out, width = shape
    if kind in ("lora", "dora"):
        w = lora(random(2, width), random(out, 2))
        return w if kind == "lora" else Weights("dora", w.tensors | {"rows": torch.rand(out, generator=g) + 0.5}, 2.0)
    if kind == "loha":
        return Weights("loha", {"w1_a": random(out, 2), "w1_b": random(2, width), "w2_a": random(out, 2), "w2_b": random(2, width)}, 2.0)
    if kind == "lokr":
        return Weights("lokr", {"k1": random(2, 2), "k2": random(out // 2, width // 2)}, 1.0)
    return Weights("full", {"diff": random(out, width)}, None)


def made(net: Any, before: dict[str, Tensor], modules: dict[str, Weights]) -> float:
    """What a reader's change of the weights is off by, as a share of that which the file says."""
    off = whole = 0.0
    for name, w in modules.items():
        layer = net.get_submodule(name)
        if hasattr(layer, "merge"):
            layer.merge()
            layer = layer.get_base_layer()
        right = w.change(before[name])
        off += float((layer.weight.detach() - before[name] - right).square().sum())
        whole += float(right.square().sum())
    return math.sqrt(off / whole)


def through_diffusers(folder: Path, denoiser: str, path: Path, modules: dict[str, Weights]) -> float | None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    net = getattr(pipe, denoiser)
    before = {n: net.get_submodule(n).weight.detach().clone() for n in modules}
    try:
        pipe.load_lora_weights(path.parent, weight_name=path.name)
    except Exception:
        return None
    return made(net, before, modules)


def through_peft(folder: Path, denoiser: str, path: Path, modules: dict[str, Weights]) -> float | None:
    from peft import PeftModel

    net = getattr(DiffusionPipeline.from_pretrained(folder), denoiser)
    before = {n: net.get_submodule(n).weight.detach().clone() for n in modules}
    try:
        model = PeftModel.from_pretrained(net, path)
    except Exception:
        return None
    return made(model.base_model.model, before, modules)


def through_lycoris(folder: Path, denoiser: str, path: Path, modules: dict[str, Weights]) -> float | None:
    import lycoris
    from lycoris.wrapper import LycorisNetwork

    net = getattr(DiffusionPipeline.from_pretrained(folder), denoiser)
    before = {n: net.get_submodule(n).weight.detach().clone() for n in modules}
    LycorisNetwork.LORA_PREFIX = "lora_unet" if denoiser == "unet" else "lycoris"
    try:
        network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), net)
    except Exception:
        return None
    if not network.loras:
        return None
    network.merge_to(1.0)
    return made(net, before, modules)


READERS = {"diffusers": through_diffusers, "PEFT": through_peft, "LyCORIS": through_lycoris}
CELLS = [
    (name, layout, kind)
    for name in ("sd", "sdxl", "flux", "sd3")
    for layout, kinds in (("kohya", ("lora", "dora", "loha", "lokr", "full")), ("diffusers", ("lora", "dora")), ("peft", ("lora", "dora")))
    for kind in kinds
    if (name, layout, kind) != ("flux", "kohya", "lora")  # diffusers knows the real widths alone: tests/test_interop.py
    # LyCORIS looks for diffusers' block names, and kohya's files of XL have the original ones: its own trainer renames the network's
    and (name, layout) != ("sdxl", "kohya")
]


# Of the newest family, whose files in the other layouts are as FLUX.1's, the one that is not; the rest with the slow tests.
BY_DEFAULT = [
    pytest.param(*cell, marks=[pytest.mark.slow] if cell[0] == "sd3" and cell[1:] not in (("kohya", "lora"), ("kohya", "lokr")) else [])
    for cell in CELLS
]


@pytest.mark.parametrize(("name", "layout", "kind"), BY_DEFAULT)
def test_the_table_says_what_the_readers_do(name: str, layout: str, kind: str, bases: Bases, tmp_path: Path) -> None:
    folder = bases(name)
    of = load.family(source.resolve_base(str(folder)))
    skeleton: Any = of.parts.skeleton(of.spec.denoiser)
    modules = {n: weights(kind, tuple(m.weight.shape)) for n, m in skeleton.named_modules() if n.endswith(ENDS)}
    path = tmp_path / ("x" if layout == "peft" else "x.safetensors")
    export({(of.spec.denoiser, n): w for n, w in modules.items()}, path, layout, of.spec.name, "fp32", {}, "base")
    said = {r.tool: r for r in read(path, of.spec.name).readings}
    for tool, reader in READERS.items():
        off = reader(folder, of.spec.denoiser, path, modules)
        how = said[tool].how
        if how == EXACT:
            assert off is not None and off < 1e-4, (tool, off)
        elif how in (WRONG, PART):
            assert off is not None and off > 0.01, (tool, off)
        else:
            assert how == UNREAD and (off is None or off == pytest.approx(1.0)), (tool, off)


def every_traits() -> list[Traits]:
    out = []
    for layout in ("kohya", "diffusers", "peft"):
        for kind in ("lora", "dora", "loha", "oft", "full"):
            for trait in ((False, False, False), (True, False, False), (False, True, False), (False, False, True)):
                out.append(Traits(layout, frozenset({kind}), *trait))
    return out


@pytest.mark.parametrize("spec", FAMILIES, ids=lambda spec: spec.name)
def test_each_rule_decides_something(spec: FamilySpec) -> None:
    """A rule that none of the files reaches says nothing to anybody."""
    rules, used = spec.names.rules, set()
    for t in every_traits():
        assert [r.tool for r in readings(spec.names, t)] == list(TOOLS)
        used |= {next((i for i, r in enumerate(rules) if tool in r.tools and r.holds(t)), -1) for tool in TOOLS}
    assert used - {-1} == set(range(len(rules)))


def test_the_documents_hold_the_table() -> None:
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- readers -->\n(.*?)\n<!-- /readers -->", text, re.S)
    assert shown and shown[1] == compatibility.table(), "python -c 'from finetune.adapters.compatibility import table; print(table())'"
