"""Single-file checkpoints: unpacked to the same pictures, or refused by name."""

from pathlib import Path

import original_layout
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from finetune.errors import AccessError
from finetune.families import single_file, source


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    # The tiny network has no output block 5: another of its keys stands in.
    monkeypatch.setattr(single_file, "PROBE", "model.diffusion_model.output_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    monkeypatch.setattr(single_file, "width", lambda path: 768)


@pytest.mark.usefixtures("probe")
@pytest.mark.filterwarnings("ignore")
def test_a_single_file_is_the_base_it_was_made_of(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = original_layout.write(base, tmp_path / "model.safetensors")
    monkeypatch.setattr(source, "_download", lambda *a, **k: (base, "commit"))
    found = source.resolve(str(path))
    assert found.id == "model" and found.spec.name == "stable-diffusion"
    ours, whole = StableDiffusionPipeline.from_pretrained(found.folder), StableDiffusionPipeline.from_pretrained(base)
    for part in ("unet", "vae", "text_encoder"):
        here, there = getattr(ours, part).state_dict(), getattr(whole, part).state_dict()
        assert here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here), part
    stamp = (found.folder / "model_index.json").stat().st_mtime_ns
    assert (source.resolve(str(path)).folder / "model_index.json").stat().st_mtime_ns == stamp, "unpacked once"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_x.alpha": torch.ones(1)}, r"not a Stable Diffusion 1\.x checkpoint \(its keys begin lora_unet_x\.alpha\)"),
        ({single_file.PROBE: torch.ones(4, 1024)}, "does not say whether it predicts epsilon or v"),
        ({single_file.PROBE: torch.ones(4, 16)}, "unknown text width 16"),
    ],
)
def test_other_files_are_refused(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(AccessError, match=message):
        source.resolve(str(tmp_path / "x.safetensors"))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(AccessError, match=r"x\.safetensors: not a readable safetensors file"):
        source.resolve(str(tmp_path / "x.safetensors"))
