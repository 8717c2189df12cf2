"""Bases that repaint a part of a picture: what they are told, which masks they see, and that they learn and draw with them."""

import json
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from parts import Bases, Make, Train, family, in_two_parts, readied
from PIL import Image
from test_families import Recorder, discrete_alphas, tensors
from torch import Tensor

from finetune import cli, config
from finetune.bases import TINY
from finetune.data import masks
from finetune.data.batch import columns
from finetune.data.cache import Cache
from finetune.data.captions import Wording
from finetune.data.crop import Augment, cut, cut_plane, to_tensor
from finetune.data.encoded import Pixels, Variant
from finetune.data.inputs import INPAINT_MASK, LOSS_MASK, MASKED
from finetune.data.sample import Sample, Size
from finetune.data.scan import Origin, scan
from finetune.errors import AccessError, ConfigError, DataError
from finetune.families import source
from finetune.families.family import Family
from finetune.preparation import data, encoding
from finetune.training import loop
from finetune.training.run import begun

PROMPT, CAPTION = "red disc", Wording(caption="red disc")
each_base = pytest.mark.parametrize("name", ["sd-inpainting", "sdxl-inpainting"])


def mask_of(width: int, height: int) -> Image.Image:
    """White in its lower right, with edges that no grid of latents has."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2 + 1, height // 4 + 1, width, height))
    return mask


def place(root: Path, sizes: Sequence[tuple[int, int]] = ((24, 20),), masked: int = 99) -> Path:
    """Pictures, the first `masked` of them with an inpainting mask of their own."""
    root.mkdir(parents=True)
    for i, (width, height) in enumerate(sizes):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{i:02d}.png")
        if i < masked:
            mask_of(width, height).save(root / f"{i:02d}.inpaint.png")
    return root


def looked(root: Path) -> list[Sample]:
    listing = scan(Origin(str(root), CAPTION, beside=frozenset({INPAINT_MASK})))
    listing.refuse()
    return listing.samples


def rows(ours: Family, root: Path, pixels: Pixels, samples: Sequence[Sample], variant: int = 0) -> list[dict[str, Tensor]]:
    """What a cache in `root` keeps of a variant of samples."""
    jobs = [Variant(pixels.key(s, variant), s, variant) for s in samples]
    encoding.encode_pictures(ours, [[job] for job in jobs], pixels, store := Cache(root), lambda count: None)
    return [store[job.name] for job in jobs]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.run(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


# The masks


def test_masks_are_functions_of_the_picture_and_the_number() -> None:
    size = Size(48, 64)
    for number in range(8):
        once, again = (masks.drawn_mask("ab" * 32, number, size) for _ in range(2))
        assert once.tobytes() == again.tobytes() and once.size == (64, 48) and set(once.tobytes()) <= {0, 255}
    different = {masks.drawn_mask(f"{i:064x}", number, size).tobytes() for i in range(16) for number in range(4)}
    assert len(different) == 16 * 3 + 1  # all that is white is one


def test_of_four_masks_one_is_of_each_kind_and_none_keeps_all() -> None:
    for i in range(20):
        shares = [masks.white_share(masks.drawn_mask(f"{i:064x}", number, Size(64, 64))) for number in range(4)]
        assert shares.count(1.0) == 1 and all(masks.LEAST <= s <= masks.MOST for s in shares if s < 1)


@pytest.mark.parametrize("size", [(8, 8), (8, 128), (128, 8), (16, 16)])
def test_the_smallest_pictures_have_masks_too(size: tuple[int, int]) -> None:
    for i in range(60):
        assert masks.white_share(masks.drawn_mask(f"{i:064x}", i % 4, Size(*size))) >= masks.LEAST


def test_variants_have_masks_of_their_own_and_own_masks_every_other_time(tmp_path: Path, bases: Bases) -> None:
    """A mask that is missing is drawn; it never means that all is kept."""
    own, other = looked(place(tmp_path / "a", ((24, 20), (24, 20)), masked=1))
    pixels = Pixels(augment=Augment(variants=4, masks=True, flip=True), reads=(INPAINT_MASK, MASKED))
    for sample, theirs in ((own, {0, 1, 4, 5}), (other, set[int]())):
        sample = replace(sample, size=Size(16, 16))
        seen = [pixels.prepared(sample, variant).inpaint_mask for variant in range(pixels.augment.count)]
        assert all(mask is not None and masks.white_share(mask) > 0 for mask in seen)
        drawn = [masks.drawn_mask(sample.content, variant, sample.size) for variant in range(8)]
        assert {i for i, (a, b) in enumerate(zip(seen, drawn, strict=True)) if a is None or a.tobytes() != b.tobytes()} == theirs
        names = {pixels.key(sample, variant) for variant in range(8)}
        assert len(names) == (6 if theirs else 8)  # the own one, mirrored and not


def test_what_is_held_out_has_the_mask_of_its_content(train: Train, bases: Bases, tmp_path: Path) -> None:
    """Whatever the seed of the run, the number of variants and the name of the file."""
    tables = []
    for i, (name, seed, variants) in enumerate([("x.png", 0, 4), ("y.png", 5, 2)]):
        held = tmp_path / str(i) / "held"
        held.mkdir(parents=True)
        tiny.picture(90).save(held / name)
        more = {"caption": PROMPT, "holdout": str(held), "variants": variants}
        out = {"seed": seed, "out": str(tmp_path / f"out{i}")}
        train(model={"base": str(bases("sd-inpainting"))}, data=more, optim={"steps": 2}, run=out)
        first = (tmp_path / f"out{i}" / "metrics.jsonl").read_text().splitlines()[0]
        tables.append(json.loads(first)["held_out_by_timestep"])
    assert tables[0] == tables[1]


# What the network is told


@each_base
@torch.no_grad()
def test_training_feeds_the_denoiser_what_inference_feeds_it(
    name: str, bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' own pipeline, given the picture and its mask; with the mean of the masked picture's latents, which it would draw."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    ours, pipe = family(bases(name)), DiffusionPipeline.from_pretrained(bases(name))
    pipe.set_progress_bar_config(disable=True)
    seen = Recorder(pipe.unet)
    sizes = ((16, 16), (32, 16))
    samples = [replace(s, size=s.original) for s in looked(place(tmp_path / "a", sizes))]
    kept = rows(ours, tmp_path / "kept", Pixels(reads=ours.edition.reads), samples)
    for sample, row, (width, height) in zip(samples, kept, sizes, strict=True):
        picture = Image.open(tmp_path / "a" / sample.name)
        pipe(
            prompt=PROMPT, guidance_scale=4.0, num_inference_steps=2, height=height, width=width, output_type="latent", strength=1.0,
            image=picture, mask_image=mask_of(width, height), generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        inference, told = list(seen.calls), [ours.unconditional(ours.texts([""])[0]), ours.texts([PROMPT])[0]]
        given = columns([row, row]) | {"crop": torch.tensor([[height, width, 0, 0, height, width]] * 2)}
        assert len(inference) == 2
        for arguments, output in inference:
            seen.calls.clear()
            x_t, t = arguments["sample"][:, :4], arguments["timestep"].expand(2)
            predicted = ours.predict({"denoiser": pipe.unet}, x_t, t, ours.condition(told, given))
            ((mine, _),) = seen.calls
            for key, value in tensors(mine).items():
                assert (value.float() - tensors(arguments)[key].expand(value.shape).float()).abs().max() < 1e-5, key
            assert (predicted - output).abs().max() < 1e-5
        seen.calls.clear()


@each_base
def test_a_step_is_the_published_formula(name: str, bases: Bases, settings: Make) -> None:
    job = settings(
        model={"base": str(bases(name))}, data={"resolution": 16, "buckets": False, "caption": PROMPT, "caption_dropout": 0},
    )  # fmt: skip
    training = begun(config.parse(job)).training
    net, g = training.family.parts.load("unet"), torch.Generator().manual_seed(3)
    for p in training.trainable.values():
        p.data = 0.2 * torch.randn(p.shape, generator=g)
    ((_, batch),) = loop.batches(training, 0)
    drawn, x = loop.draws(training, 0)(batch.slots), batch.columns["x_0"]
    ours = loop.loss_sum(training, batch, 0) / batch.weights.sum()
    e, t = drawn.normal("noise", x.shape[1:]), (drawn.uniform("timestep") * 1000).long()
    a = discrete_alphas()[t].view(-1, 1, 1, 1)
    told = torch.cat([a.sqrt() * x + (1 - a).sqrt() * e, batch.columns[INPAINT_MASK], batch.columns[MASKED]], 1)
    pipe = DiffusionPipeline.from_pretrained(bases(name))
    more: dict[str, Any] = {}
    hidden, *rest = pipe.encode_prompt(PROMPT, device="cpu", num_images_per_prompt=2, do_classifier_free_guidance=False)
    if name.startswith("sdxl"):
        ids = torch.tensor([[20.0, 24, 0, 2, 16, 16]]).repeat(2, 1)  # pictures of 24x20, scaled to 19x16, centre-cropped
        more = {"added_cond_kwargs": {"text_embeds": rest[1], "time_ids": ids}}
    expected = ((net(told, t, encoder_hidden_states=hidden, return_dict=False, **more)[0] - e) ** 2).mean((1, 2, 3)).mean()
    assert abs(ours - expected) < 1e-5 * expected


def test_picture_mask_and_hole_share_a_view(tmp_path: Path, bases: Bases) -> None:
    """Mirrored and cut alike: the masked latents are those of the cut picture, grey where the cut mask is white."""
    ours = family(bases("sd-inpainting"))
    (sample,) = (replace(s, size=Size(16, 16)) for s in looked(place(tmp_path / "a", ((40, 20),))))
    pixels = Pixels(augment=Augment(flip=True, crop=True, variants=3, masks=True), reads=ours.edition.reads, own_masks=True)
    picture = Image.open(tmp_path / "a" / sample.name).convert("RGB")
    for variant in range(pixels.augment.count):
        view, (kept,) = pixels.view(sample, variant), rows(ours, tmp_path / "kept", pixels, [sample], variant)
        seen = to_tensor(cut(picture, sample.size, view)[0])
        white = torch.from_numpy(np.asarray(cut_plane(mask_of(40, 20), sample.size, sample.size, view)) >= 128)
        assert 0 < white.float().mean() < 1
        assert torch.equal(kept[INPAINT_MASK][0], white[::2, ::2].to(torch.uint8))
        assert (kept["masked.mean"] - ours.encode((seen * ~white)[None])[0][0]).abs().max() < 1e-5
        assert (kept["x_0.mean"] - ours.encode(seen[None])[0][0]).abs().max() < 1e-5


def test_what_counts_and_what_is_repainted_are_two_inputs(tmp_path: Path, bases: Bases, settings: Make) -> None:
    root = place(tmp_path / "a", ((24, 20),) * 2)
    for i in range(2):
        Image.new("L", (24, 20), 255).save(root / f"{i:02d}.mask.png")
    job = settings(
        model={"base": str(bases("sd-inpainting"))}, data={"path": str(root), "caption": PROMPT, "mask": "file", "inpaint_mask": "file"}
    )
    ((_, batch),) = loop.batches(begun(config.parse(job)).training, 0)
    assert batch.columns[LOSS_MASK].min() == 1
    assert batch.columns[INPAINT_MASK].min() == 0 and batch.columns[INPAINT_MASK].max() == 1


# What is refused


def test_a_picture_without_its_mask_is_named(tmp_path: Path, bases: Bases, settings: Make) -> None:
    root = place(tmp_path / "a", ((24, 20),) * 3, masked=2)
    job = settings(model={"base": str(bases("sd-inpainting"))}, data={"path": str(root), "caption": PROMPT, "inpaint_mask": "file"})
    with pytest.raises(DataError, match=r"data\.inpaint_mask file: there is no name\.inpaint\.png beside 02\.png"):
        readied(config.parse(job))


def test_a_mask_that_repaints_nothing_is_named(tmp_path: Path, bases: Bases, settings: Make) -> None:
    root = place(tmp_path / "a")
    Image.new("L", (24, 20), 100).save(root / "00.inpaint.png")
    job = settings(model={"base": str(bases("sd-inpainting"))}, data={"path": str(root), "caption": PROMPT})
    with pytest.raises(DataError, match=r"the inpainting mask of 00\.png: nothing of the part that is trained on is white"):
        begun(config.parse(job))


def test_a_mask_of_other_proportions_is_named(tmp_path: Path) -> None:
    root = place(tmp_path / "a")
    Image.new("L", (30, 20), 255).save(root / "00.inpaint.png")
    with pytest.raises(DataError, match=r"00\.png: its inpainting mask is 30x20, and the picture 24x20"):
        looked(root)


def test_a_check_names_masks_that_would_end_a_run(bases: Bases, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every variant: one that is white in a corner alone may be cut away."""
    root = place(tmp_path / "a", ((40, 20),) * 3)
    Image.new("L", (40, 20), 100).save(root / "00.inpaint.png")
    corner = Image.new("L", (40, 20), 0)
    corner.paste(255, (0, 0, 6, 20))
    corner.save(root / "01.inpaint.png")
    words = ["data", "check", str(root), "--base", str(bases("sd-inpainting")), "--caption", PROMPT, "--resolution", "16", "--json"]
    for more, named in (["--set", "data.buckets=false"], ["00.png", "01.png"]), ([], ["00.png"]):
        code, printed, _ = run(capsys, *words, *more)
        found = [e for e in json.loads(printed)["errors"] if "nothing of the part that is trained on is white" in e["what"]]
        assert code == 3 and [e["files"] for e in found] == [named], printed


def test_masks_are_known_in_any_case_and_in_archives(tmp_path: Path) -> None:
    """One that was taken for a picture would be trained on."""
    root = place(tmp_path / "a")
    (root / "00.inpaint.png").rename(root / "00.Inpaint.PNG")
    (sample,) = looked(root)
    assert INPAINT_MASK in sample.inputs
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for file in root.iterdir():
            shard.add(file, file.name)
    (packed,) = looked(tmp_path / "a.tar")
    assert packed.contents == sample.contents


def test_a_class_pictures_mask_is_not_offered(tmp_path: Path) -> None:
    """No setting would have it read."""
    assert "inpainting mask file not used; of a class picture" in scan(Origin(str(place(tmp_path / "a")), CAPTION, drawn=True)).notes


def test_of_two_masks_the_one_that_is_not_used_is_named(tmp_path: Path) -> None:
    root = place(tmp_path / "a")
    mask_of(24, 20).save(root / "00.inpaint.jpg")
    listing = scan(Origin(str(root), CAPTION, beside=frozenset({INPAINT_MASK})))
    assert listing.notes["mask file not used, as there is 00.inpaint.png"] == ["00.inpaint.jpg"]


def test_a_base_that_draws_from_noise_alone_says_that_it_reads_no_masks(tmp_path: Path, base: Path, settings: Make) -> None:
    root = place(tmp_path / "a")
    runs = [settings(data={"path": str(root), "caption": PROMPT} | more) for more in ({}, {"inpaint_mask": "file"}, {"variants": 2})]
    said: list[str] = []
    prepared = readied(config.parse(runs[0])).data
    prepared.describe(said.append)
    assert "  1 with an inpainting mask, not used: nothing is repainted in this run" in said
    assert not any(INPAINT_MASK in s.inputs for s in prepared.pictures.train)
    with pytest.raises(ConfigError, match=r"data\.inpaint_mask file: this base does not repaint"):
        readied(config.parse(runs[1]))
    with pytest.raises(ConfigError, match=r"data\.variants: neither crops nor colours are random"):
        readied(config.parse(runs[2]))


@pytest.mark.parametrize(("name", "channels"), [("sd", 8), ("sd", 5), ("sd-inpainting", 10), ("sdxl", 5)])
def test_channels_that_no_input_explains_are_refused_before_anything_is_loaded(
    name: str, channels: int, bases: Bases, tmp_path: Path
) -> None:
    folder = shutil.copytree(bases(name), tmp_path / "odd")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": channels}))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(AccessError, match=rf"its unet\.in_channels is {channels}, and vae\.latent_channels 4"):
        source.resolve_base(str(folder))


# Training


def test_a_run_goes_on_to_the_same_bytes(settings: Make, bases: Bases, tmp_path: Path) -> None:
    job = settings(
        model={"base": str(bases("sd-inpainting"))}, data={"holdout": "0.3", "flip": True},
        run={"checkpoint_every": 3, "sample_prompt": ["red disc"]},
    )  # fmt: skip
    whole, parts = in_two_parts(job, tmp_path)
    assert Path(whole["adapter"]).read_bytes() == Path(parts["adapter"]).read_bytes()
    assert Path(whole["sheet"]).read_bytes() == Path(parts["sheet"]).read_bytes()


def test_a_changed_mask_is_another_picture(settings: Make, bases: Bases, tmp_path: Path) -> None:
    root, seen = place(tmp_path / "a"), []
    job = config.parse(settings(model={"base": str(bases("sd-inpainting"))}, data={"path": str(root), "caption": PROMPT}))
    for level in (255, 200):
        Image.new("L", (24, 20), level).save(root / "00.inpaint.png")
        seen.append(data.gathered(job).fingerprint())
    assert seen[0] != seen[1]


def test_an_adapter_draws_on_the_base_that_repaints_and_on_the_other(
    train: Train, bases: Bases, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its layers are the same; what was drawn on keeps its own pixels."""
    summary = train(model={"base": str(bases("sd-inpainting"))}, optim={"steps": 2})
    root = place(tmp_path / "a", ((32, 16),))
    words = ["--adapter", summary["adapter"], "--steps", "2", "--out", str(tmp_path / "p"), "--json", PROMPT]
    on = ["--image", str(root / "00.png"), "--mask", str(root / "00.inpaint.png")]
    assert run(capsys, "generate", "--base", str(bases("sd")), *words)[0] == 0
    code, printed, said = run(capsys, "generate", "--base", str(bases("sd-inpainting")), *words, *on)
    assert "note: 00.png is 32x16, and drawn upon at " in said
    (drawn,) = json.loads(printed)["pictures"]
    image, picture = np.asarray(Image.open(drawn["path"])), np.asarray(Image.open(root / "00.png"))
    size = Size(*image.shape[:2])
    white = np.asarray(cut_plane(mask_of(32, 16), size, size)) >= 128
    seen = np.asarray(cut(Image.fromarray(picture), size)[0])
    assert code == 0 and drawn["image"] == "00.png" and drawn["mask"] == "00.inpaint.png"
    assert np.array_equal(image[~white], seen[~white]) and not np.array_equal(image[white], seen[white])


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("sd-inpainting", "--image {a}/00.png", "--image: needs --mask"),
        ("sd-inpainting", "--mask {a}/00.inpaint.png", "--mask: needs --image"),
        ("sd", "--image {a}/00.png --mask {a}/00.inpaint.png", "--image, --mask: sd draws from noise alone"),
        ("sd-inpainting", "--image {a}/00.png --mask {a}/other.png", "--mask other.png: is 40x20, and 00.png 24x20"),
        ("sd-inpainting", "--image {a}/00.png --mask {a}/black.png", "--mask black.png: nothing of it is white"),
        ("sd-inpainting", "--image {a}/00.png --mask {a}/edge.png --width 16 --height 32", "--mask: nothing of it is white when it is cut"),
        ("sd-inpainting", "--image {a}/none.png --mask {a}/black.png", "none.png"),
    ],
)
def test_what_cannot_be_drawn_upon_is_refused_by_name(
    name: str, words: str, message: str, bases: Bases, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = place(tmp_path / "a")
    Image.new("L", (40, 20), 255).save(root / "other.png")
    Image.new("L", (24, 20), 100).save(root / "black.png")
    edge = Image.new("L", (24, 20), 0)
    edge.paste(255, (0, 0, 3, 20))
    edge.save(root / "edge.png")
    given = words.format(a=root).split()
    code, _, said = run(capsys, "generate", "--base", str(bases(name)), *given, "--out", str(tmp_path / "p"), PROMPT)
    assert code == (3 if "none.png" in words else 2) and message in said and not list((tmp_path / "p").glob("*.png"))


def test_the_embedded_base_that_repaints_begins_as_the_embedded_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it is told of a picture, as its new channels are 0; and it is made once."""
    pictures = []
    for base in ("tiny", "tiny-inpainting"):
        code, printed, _ = run(capsys, "generate", "--base", base, "fox face", "--steps", "2", "--out", str(tmp_path / base), "--json")
        assert code == 0
        pictures.append(np.asarray(Image.open(json.loads(printed)["pictures"][0]["path"])).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    folder = source.resolve_base("tiny-inpainting").folder
    before = (folder / "unet" / "config.json").stat().st_mtime_ns
    assert source.resolve_base("tiny-inpainting").folder == folder and (folder / "unet" / "config.json").stat().st_mtime_ns == before


def test_the_embedded_base_learns_to_repaint(train: Train, bases: Bases, tmp_path: Path) -> None:
    """With nine channels of which five are 0 it begins as if it read no mask. On pictures that training never saw, what it says of them is
    nearer to them after a few steps: it has learned to look at what is kept."""
    pictures = TINY.parent / "demo-held-out"
    summary = train(
        model={"base": "tiny-inpainting"}, data={"path": str(pictures), "holdout": "0.2", "caption_dropout": 0.0},
        method={"rank": 16, "alpha": 16, "targets": "to_q,to_k,to_v,to_out.0,conv_in"}, optim={"steps": 60, "batch": 4, "lr": 5e-3},
        run={"holdout_every": 60},
    )  # fmt: skip
    assert summary["verdict"] == "learned" and summary["held_out_change"]["high"] < 0
