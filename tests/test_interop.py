"""Every layout has the effect of the trained model through its own readers, with alpha different from rank."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from finetune import config
from finetune.adapters import file as adapter_file
from finetune.errors import DataError
from finetune.training.run import Runner

Inputs = dict[str, torch.Tensor]


@pytest.fixture
def inputs() -> Inputs:
    g = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=g),
        "timestep": torch.tensor([10, 700]),
        "encoder_hidden_states": torch.randn(2, 12, 16, generator=g),
    }


@torch.no_grad()
def output(unet: Any, inputs: Inputs) -> torch.Tensor:
    return unet(**inputs).sample


@pytest.fixture
def trained(
    settings: Callable[..., dict[str, Any]], inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[Path, torch.Tensor]]:
    """Trains, writes one layout, and returns the file with the *live* training model's output."""
    live: list[Any] = []
    finish = Runner.finish

    def keep(self: Runner, training: Any) -> Any:
        live.append(output(self.accelerator.unwrap_model(training.module).nets["denoiser"].eval(), inputs))
        return finish(self, training)

    monkeypatch.setattr(Runner, "finish", keep)

    def make(layout: str, **run: Any) -> tuple[Path, torch.Tensor]:
        made = settings(
            method={"rank": 4, "alpha": 10, "targets": "all-linear"}, optim={"lr": 3e-2, "steps": 8}, run={"format": layout} | run
        )
        summary = Runner(config.parse(made)).run()
        return Path(summary["adapter"]), live[-1]

    return make


def unet(base: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(base, subfolder="unet").eval()


def through_diffusers(base: Path, path: Path, inputs: Inputs) -> torch.Tensor:
    pipe = StableDiffusionPipeline.from_pretrained(base)
    pipe.load_lora_weights(path.parent, weight_name=path.name)
    loaded = sum(".lora_A." in n for n, _ in pipe.unet.named_parameters())
    assert loaded == len(adapter_file.read(path).pairs)
    return output(pipe.unet, inputs)


def through_peft(base: Path, path: Path, inputs: Inputs) -> torch.Tensor:
    from peft import PeftModel

    model = PeftModel.from_pretrained(unet(base), path)
    assert sum(".lora_A." in n for n, _ in model.named_parameters()) == len(adapter_file.read(path).pairs)
    return output(model, inputs)


def through_lycoris(base: Path, path: Path, inputs: Inputs) -> torch.Tensor:
    import lycoris
    from lycoris.wrapper import LycorisNetwork

    LycorisNetwork.LORA_PREFIX = "lora_unet"  # with its own prefix it loads nothing, and says nothing
    model = unet(base)
    network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), model)
    assert len(network.loras) == len(adapter_file.read(path).pairs)
    network.merge_to(1.0)
    return output(model, inputs)


@pytest.mark.filterwarnings("ignore")  # the readers' own
@pytest.mark.parametrize(
    ("layout", "reader"),
    [("kohya", through_diffusers), ("kohya", through_lycoris), ("diffusers", through_diffusers), ("peft", through_peft)],
)
def test_a_file_has_the_trained_effect_elsewhere(layout: str, reader: Any, trained: Any, base: Path, inputs: Inputs) -> None:
    path, live = trained(layout)
    assert (live - output(unet(base), inputs)).abs().max() > 0.05, "the adapter must do something for this test to mean anything"
    assert (reader(base, path, inputs) - live).abs().max() < 1e-5


def test_the_strength_stands_in_one_place(trained: Any) -> None:
    kohya, _ = trained("kohya")
    state = load_file(kohya)
    assert {float(v) for k, v in state.items() if k.endswith(".alpha")} == {4.0}  # the rank: 10 / 4 is folded in
    with safe_open(kohya, "pt") as f:
        assert "lora_adapter_metadata" not in f.metadata()
    contract = adapter_file.read(kohya).contract
    assert contract and contract.training_alpha == 10 and contract.rank == 4


def test_the_header_names_no_path_and_no_date(trained: Any, tmp_path: Path, base: Path) -> None:
    path, _ = trained("kohya")
    facts = adapter_file.read(path).metadata
    assert str(tmp_path) not in str(facts) and str(base.parent) not in str(facts) and "date" not in str(facts)
    assert facts["modelspec.architecture"] == "stable-diffusion-v1/lora"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert facts["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data[8 + size :]).hexdigest()


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    from finetune.errors import FinetuneError

    pairs = {"a": (torch.ones(2, 3), torch.tensor([[1e6, 1.0]]))}
    with pytest.raises(FinetuneError, match="not finite as fp16"):
        adapter_file.export(pairs, tmp_path / "x.safetensors", "kohya", "unet", "fp16", {}, "base")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a readable safetensors"), (b"\x10" + b"\0" * 7 + b"{}", "not a readable safetensors"), (b"PK\x03\x04", "not a readable")],
)
def test_damaged_files_are_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        adapter_file.read(path)
    assert "x.safetensors" in error.value.message


def test_a_peft_folder_of_another_tool_has_its_own_strength(trained: Any, base: Path, inputs: Inputs) -> None:
    from peft import PeftModel

    from finetune.families import load, source
    from finetune.sampling import draw

    path, _ = trained("peft")
    written = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(written | {"lora_alpha": 16}))
    pipeline = load.family(source.resolve(str(base))).pipeline()
    draw.apply(pipeline, adapter_file.read(path), "x")
    assert (output(pipeline.unet, inputs) - output(PeftModel.from_pretrained(unet(base), path), inputs)).abs().max() < 1e-5
    (path / "adapter_config.json").write_text(json.dumps(written | {"use_dora": True}))
    with pytest.raises(DataError, match="use_dora is not understood"):
        adapter_file.read(path)
