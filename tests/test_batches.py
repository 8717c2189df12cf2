"""What a batch holds: each row its own sample's latents, caption, crop and mask, whatever is mixed; and what a mask does to the loss."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import gradients
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune import config
from finetune.data.batch import Batch
from finetune.data.crop import Augment
from finetune.data.encoded import Encoded, Pixels
from finetune.data.index_plan import IndexPlan
from finetune.data.inputs import LOSS_MASK
from finetune.data.sample import Sample, Size
from finetune.draws import StepDraws
from finetune.objectives.objective import Ask
from finetune.training.run import begun

SIZES = [Size(16, 16), Size(8, 24), Size(24, 8)]


class Numbered(dict[bytes, dict[str, torch.Tensor]]):
    """Latents that say whose they are: the mean is the sample's number, the crop the variant's."""

    def __init__(self, samples: list[Sample], pixels: Pixels) -> None:
        super().__init__()
        for i, s in enumerate(samples):
            for v in range(pixels.augment.count):
                shape = (4, s.size.height // 2, s.size.width // 2)
                row = {
                    "x_0.mean": torch.full(shape, float(i)),
                    "x_0.deviation": torch.full(shape, 1e-3),
                    "crop": torch.tensor([v, i, 0, 0, *s.size]),
                }
                self[pixels.key(s, v)] = row | ({LOSS_MASK: torch.full((1, *shape[1:]), i / 100)} if LOSS_MASK in s.inputs else {})


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[IndexPlan, Pixels, int, int]:
    def sample(i: int) -> Sample:
        captions = tuple(f"{i}/{k}" for k in range(draw(st.integers(1, 3))))
        times = draw(st.sampled_from([Fraction(1), Fraction(2), Fraction(5, 3)]))
        size = draw(st.sampled_from(SIZES))
        return tiny.sample(f"{i}", f"{i}", captions, draw(st.booleans()), weight=1 + i, times=times, size=size)

    counts = [draw(st.integers(1, 8)) for _ in range(draw(st.integers(1, 2)))]
    samples = [sample(i) for i in range(sum(counts))]
    world, size = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    plan = IndexPlan(samples, world * size * len(counts), draw(st.integers(0, 99)), counts)
    return plan, Pixels(augment=Augment(draw(st.booleans()), draw(st.booleans()), 0.0, 2)), world, size


@given(mixtures(), st.integers(0, 30))
def test_caption_i_goes_with_latent_i(mixture: tuple[IndexPlan, Pixels, int, int], step: int) -> None:
    plan, pixels, world, size = mixture
    samples = list(plan.samples)
    made = Encoded(samples, Numbered(samples, pixels), pixels)  # type: ignore[arg-type]
    whole: dict[tuple[float, ...], int] = {}

    def draws(slots: Sequence[int]) -> StepDraws:
        return StepDraws(7, step, slots, plan.batch)

    def noised(batch: Batch) -> list[tuple[float, ...]]:
        """The first number of each row's noise, and its timestep."""
        noise, u = draws(batch.slots).normal("noise", batch.columns["x_0"].shape[1:]), draws(batch.slots).uniform("timestep")
        return [(float(row.flatten()[0]), float(level)) for row, level in zip(noise, u, strict=True)]

    for rank in range(world):
        for slots in plan.micro_batches(step, size, rank, world):
            for batch in made.batches(slots, draws, 0.2):
                x_0, masks, seen = batch.columns["x_0"], batch.columns.get(LOSS_MASK), noised(batch)
                for row in range(len(batch.captions)):
                    i = round(float(x_0[row].mean()))
                    caption = batch.captions[row]
                    assert caption is None or caption.startswith(f"{i}/")
                    assert batch.columns["crop"][row, 1] == i and batch.weights[row] == 1 + i
                    assert tuple(2 * n for n in x_0[row].shape[1:]) == samples[i].size
                    if masks is not None:
                        assert torch.all(masks[row] == (i / 100 if LOSS_MASK in samples[i].inputs else 1.0))
                    whole[seen[row]] = i
    alone: dict[tuple[float, ...], int] = {}
    for batch in made.batches(plan.slots(step), draws, 0.2):
        alone |= {key: round(float(x.mean())) for key, x in zip(noised(batch), batch.columns["x_0"], strict=True)}
    assert whole == alone, "noise and timestep belong to the slot, whoever draws them"


# Masks


def halved(root: Path, colour: int) -> Path:
    """Pictures whose right half is of one colour, and whose masks are white on the left."""
    made = tiny.folder(root, 3)
    for path in sorted(made.glob("*.png")):
        pixels = np.array(Image.open(path).convert("RGB").resize((32, 32)))
        pixels[:, 16:] = colour
        Image.fromarray(pixels).save(path)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[:, :16] = 255
        Image.fromarray(mask).save(path.with_name(f"{path.stem}-masklabel.png"))
    return made


def test_what_a_mask_leaves_out_has_no_gradient(
    settings: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of one prediction is changed by what lies inside the mask alone, and does not depend on the mask's area."""
    from finetune.training.loop import batches, draws, loss_sum
    from finetune.training.step import Step

    root = halved(tmp_path / "imgs", 0)
    runner = begun(config.parse(settings(data={"path": str(root), "mask": "file"}, optim={"batch": 3})))
    training = runner.training
    ((_, batch),) = batches(training, 0)
    masks = batch.columns[LOSS_MASK]
    assert masks.shape == (3, 1, 8, 8)
    assert torch.equal(masks[:, :, :, :4], torch.ones(3, 1, 8, 4)) and not masks[:, :, :, 4:].any()
    predicted = torch.randn(batch.columns["x_0"].shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    monkeypatch.setattr(Step, "forward", lambda *_: predicted)
    loss = loss_sum(training, batch, 0)
    loss.backward()
    gradient = predicted.grad
    assert gradient is not None and gradient[..., :4].abs().min() > 0 and not gradient[..., 4:].any()
    noise = draws(training, 0)(batch.slots).normal("noise", predicted.shape[1:])
    error = (predicted - noise).square()[..., :4].flatten(1).mean(1)  # epsilon
    assert torch.allclose(loss, (error * batch.weights).sum(), rtol=1e-5)


def test_the_held_out_loss_is_that_of_the_masked_part(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    from finetune.evaluation import heldout

    root = halved(tmp_path / "imgs", 0)
    tiny.folder(tmp_path / "train", 2)
    data = {"path": str(tmp_path / "train"), "holdout": str(root), "mask": "file", "flip": True}
    runner = begun(config.parse(settings(data=data)))
    assert runner.training.encoded.place(torch.device("cpu"), 2**30) and not runner.training.encoded.place(torch.device("cpu"), 100)
    training = runner.training

    def measured(right: float) -> torch.Tensor:
        class Asked(Ask):
            def predict(self, x_t: torch.Tensor, t: Any, captions: Any = None, weights: Any = "live") -> torch.Tensor:
                out = torch.zeros_like(x_t)
                out[..., x_t.shape[-1] // 2 :] = right
                return out

            def decode(self, latents: torch.Tensor) -> torch.Tensor:
                raise AssertionError("a denoiser is measured without the decoder")

        device = torch.device("cpu")
        return heldout.losses(device, lambda batch: Asked(), training.objective, runner.training.encoded, [2, 3, 4], lambda: None)

    assert torch.equal(measured(0.0), measured(100.0)) and measured(0.0).shape == (3, 5)


def test_a_mask_is_area_resampled_moved_and_mirrored_with_its_picture() -> None:
    from finetune.data.crop import View, cut, cut_mask

    mask = Image.new("L", (90, 60), 0)
    mask.paste(255, (0, 0, 45, 60))
    grid = Size(5, 5)
    assert cut_mask(mask, Size(20, 20), grid)[0, 0].tolist() == pytest.approx([1, 1, 0.5, 0, 0], abs=0.01)
    assert cut_mask(mask, Size(20, 20), grid, View(flip=True))[0, 0].tolist() == pytest.approx([0, 0, 0.5, 1, 1], abs=0.01)
    assert cut_mask(mask, Size(20, 20), grid, View(across=0))[0, 0].tolist() == pytest.approx([1, 1, 1, 0.75, 0], abs=0.01)
    large = mask.resize((900, 600), Image.Resampling.NEAREST)
    assert torch.allclose(cut_mask(large, Size(20, 20), grid), cut_mask(mask, Size(20, 20), grid), atol=0.01), "of any scale"
    picture = Image.merge("RGB", [mask] * 3)
    view = View(flip=True, across=0.8)
    shown = np.asarray(cut(picture, Size(20, 20), view)[0])[:, :, 0] / 255
    assert np.abs(cut_mask(mask, Size(20, 20), Size(20, 20), view)[0].numpy() - shown).mean() < 0.03


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (32, 32), 0), "the mask of 00.png: nothing of the part that is trained on is white"),
        (Image.new("L", (64, 32), 255), r"00\.png: its mask is 64x32, and the picture 32x32"),
    ],
)
def test_a_mask_that_cannot_be_right_is_refused(mask: Image.Image, message: str, settings: Any, tmp_path: Path) -> None:
    from finetune.errors import DataError

    root = halved(tmp_path / "imgs", 0)
    mask.save(root / "00-masklabel.png")
    with pytest.raises(DataError, match=message):
        begun(config.parse(settings(data={"path": str(root), "mask": "file"})))


# One normaliser, for everything at once


def mixed(root: Path, **more: Any) -> dict[str, Any]:
    """Two sources, several sizes, masks in one of them, tags in another order."""
    halved(root / "masked", 200)
    tiny.folder(root / "plain", 4)
    shapes = [(24, 20), (40, 16), (16, 40), (16, 42)]
    for path, size in zip(sorted((root / "plain").glob("*.png")), shapes, strict=True):
        Image.open(path).resize(size).save(path)
        path.with_suffix(".txt").write_text("tok, red, blue, square")
    return {
        "path": None, "shuffle_tags": True, "keep_tags": 1, "tag_dropout": 0.3, "caption_dropout": 0.2, "flip": True, "caption_variants": 3,
        "sources": [{"path": str(root / "masked"), "mask": "file", "repeats": 2}, {"path": str(root / "plain")}], **more,
    }  # fmt: skip


@pytest.mark.parametrize("step", range(4))
def test_accumulation_is_exact_over_sizes_and_masks(settings: Any, tmp_path: Path, step: int) -> None:
    from test_exactness import difference

    data = mixed(tmp_path)
    parts = [
        gradients.gradients(settings(data=data, optim={"batch": b, "accumulate": 4 // b}), torch.float64, step, None) for b in (4, 2, 1)
    ]
    assert difference(parts[0], parts[1]) < 1e-10 and difference(parts[0], parts[2]) < 1e-10


def test_class_pictures_of_another_size_stand_in_the_same_step(settings: Any, tmp_path: Path) -> None:
    from test_exactness import METHODS, difference

    tiny.folder(tmp_path / "tall", 3)
    for path in sorted((tmp_path / "tall").glob("*.png")):
        Image.open(path).resize((16, 40)).save(path)
    own = METHODS["dreambooth"] | {"data": {"path": str(tmp_path / "tall"), "caption_dropout": 0.0}}
    whole = gradients.gradients(settings(optim={"batch": 4}, **own), torch.float64, 0, None)
    ones = gradients.gradients(settings(optim={"batch": 1, "accumulate": 4}, **own), torch.float64, 0, None)
    assert difference(whole, ones) < 1e-10


def test_augmented_pictures_are_what_they_say(settings: Any, tmp_path: Path) -> None:
    """A mirrored variant's latents are those of the mirrored picture, and its crop is told of the mirrored picture."""
    root = tiny.folder(tmp_path / "imgs", 1)
    made = Augment(flip=True, crop=True, tint=0.2, variants=3)
    views = [made.view("x", v) for v in range(made.count)]
    assert len(set(views)) == made.count == 6 and views[0] == (False, 0.5, 0.5, (1.0, 1.0, 1.0)) and views[1].flip
    assert all(0 <= v.across <= 1 and all(0.8 <= f <= 1.2 for f in v.tint) for v in views)
    runner = begun(config.parse(settings(data={"path": str(root), "flip": True})))
    sample = runner.prepared.data.pictures.train[0]
    mirrored = runner.training.encoded.row(sample, 1)["x_0.mean"]
    flipped = tmp_path / "flipped"
    flipped.mkdir()
    Image.open(root / "00.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(flipped / "00.png")
    (flipped / "00.txt").write_text("red disc")
    other = begun(config.parse(settings(data={"path": str(flipped)})))
    assert torch.equal(other.training.encoded.row(other.prepared.data.pictures.train[0])["x_0.mean"], mirrored)
    assert replace(sample, name="x").content == sample.content
