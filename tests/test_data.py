"""Pictures and captions: what is decoded how, what is refused by name, and what a cache may never give back."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageCms
from safetensors.torch import load_file, save_file

from finetune.data import decode, folder
from finetune.data.cache import Cache
from finetune.data.encoded import encode_captions, encode_pictures, texts
from finetune.data.plan import Slot
from finetune.errors import ConfigError, DataError
from finetune.families import load, source


def png(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def decoded(data: bytes, background: str = "white") -> tuple[np.ndarray, tuple[str, ...]]:
    made = decode.decode(data, "x", background)
    assert made.image.mode == "RGB"
    return np.asarray(made.image), made.notes


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (40, 20)).save(out, "JPEG", exif=exif)
    pixels, notes = decoded(out.getvalue())
    assert pixels.shape == (40, 20, 3) and "EXIF" in notes[0]


def test_sixteen_bits_are_rescaled_not_clipped() -> None:
    data = png(Image.fromarray(np.full((16, 16), 30000, dtype=np.uint16)))
    pixels, notes = decoded(data)
    assert abs(int(pixels.mean()) - round(30000 / 65535 * 255)) <= 1 and "8 bits" in notes[0]


def test_transparency_shows_the_background_not_the_hidden_colour() -> None:
    data = png(Image.new("RGBA", (16, 16), (255, 0, 0, 0)))
    assert decoded(data)[0].min() == 255
    assert tuple(decoded(data, "#0000ff")[0][0, 0]) == (0, 0, 255)
    half = png(Image.new("RGBA", (16, 16), (0, 0, 0, 128)))
    assert abs(int(decoded(half)[0].mean()) - 127) <= 1


def test_another_colour_space_becomes_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert not decoded(png(tiny.picture(0), icc_profile=lab))[1]
    for mode in ("L", "LA", "P", "1", "CMYK", "F"):
        if mode in ("CMYK", "F"):
            out = io.BytesIO()
            tiny.picture(0).convert(mode).save(out, "TIFF")
            assert decoded(out.getvalue())[0].shape == (20, 24, 3)
        else:
            assert decoded(png(tiny.picture(0).convert(mode)))[0].shape == (20, 24, 3)


def test_square_covers_and_keeps_the_centre() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste((0, 0, 255), (100, 0, 200, 100))
    assert np.asarray(decode.square(wide, 50))[:, 6:-6].reshape(-1, 3).tolist() == [[0, 0, 255]] * (50 * 38)
    assert decode.to_tensor(Image.new("RGB", (8, 8), "white")).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", png(tiny.picture(0))[:200], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a"]
)
def test_damaged_pictures_are_refused_by_name(data: bytes, imgs: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(data)
    with pytest.raises(DataError, match=r"broken\.png: not a readable picture"):
        folder.scan(tmp_path, folder.Wording("x"), "white")


def test_captions_come_from_sidecars_metadata_or_one_for_all(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "a", 3)
    assert [s.caption for s in folder.scan(root, folder.Wording(), "white").samples] == ["red disc", "blue disc", "green disc"]
    assert next(s.caption for s in folder.scan(root, folder.Wording(trigger="tok"), "white").samples) == "tok, red disc"
    found = folder.scan(root, folder.Wording("one"), "white")
    assert {s.caption for s in found.samples} == {"one"} and found.notes["caption file not used, as --caption is for all"] == 3
    rows = [json.dumps({"file_name": "00.png", "text": "from jsonl"}), "", json.dumps({"file_name": "01.png", "text": "two"})]
    (root / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    found = folder.scan(root, folder.Wording(), "white")
    assert [s.caption for s in found.samples] == ["from jsonl", "two"] and found.dropped == {"02.png": "not in the metadata file"}
    (root / "metadata.jsonl").unlink()
    (root / "metadata.csv").write_text('file_name,text\n00.png,"a, b"\n', encoding="utf-8")
    assert [s.caption for s in folder.scan(root, folder.Wording(), "white").samples] == ["a, b"]


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda r: [p.unlink() for p in r.iterdir()], "no pictures"),
    "no captions": (lambda r: [p.unlink() for p in r.glob("*.txt")], r"3 of 3 pictures have no caption: 00\.png, 01\.png"),
    "one caption missing": (lambda r: (r / "01.txt").unlink(), r"1 of 3 pictures have no caption: 01\.png"),
    "caption not UTF-8": (lambda r: (r / "01.txt").write_bytes(b"\xff\xfe\x00caf\xe9"), r"01\.txt: not UTF-8"),
    "metadata names a missing file": (
        lambda r: (r / "metadata.jsonl").write_text('{"file_name": "9.png", "text": "x"}'),
        "line 1: no such file",
    ),
    "metadata leaves the folder": (
        lambda r: (r / "metadata.jsonl").write_text('{"file_name": "../x.png", "text": "x"}'),
        r"line 1: \.\./x\.png leaves the folder",
    ),
    "metadata is not JSON": (lambda r: (r / "metadata.jsonl").write_text("{"), "line 1: not JSON"),
    "metadata lacks text": (
        lambda r: (r / "metadata.csv").write_text("file_name,caption\n00.png,x\n"),
        "line 2: expected file_name and text",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_are_refused_by_name(case: str, tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "a", 3)
    spoil, message = BAD_FOLDERS[case]
    spoil(root)
    with pytest.raises(DataError, match=message):
        folder.scan(root, folder.Wording(), "white")


def test_what_is_dropped_is_said(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "a", 2)
    (root / "x.heic").write_bytes(b"")
    (root / ".hidden.png").write_bytes(b"")
    tiny.picture(9).save(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    found = folder.scan(root, folder.Wording("c"), "white")
    assert len(found.samples) == 2
    assert found.dropped == {"link.png": "a link that leaves the folder", "x.heic": ".heic is not read; convert it to PNG"}


def test_a_pictures_side_never_changes(tmp_path: Path) -> None:
    small, large = (folder.scan(tiny.folder(tmp_path / n, c), folder.Wording(), "white") for n, c in (("a", 10), ("b", 30)))
    sides = [[{s.content for s in side} for side in folder.split(f, "0.4", folder.Wording(), "white")] for f in (small, large)]
    assert sides[0][0] <= sides[1][0] and sides[0][1] <= sides[1][1]
    assert not sides[1][0] & sides[1][1]
    other = tiny.folder(tmp_path / "c", 4)
    train, held = folder.split(small, str(other), folder.Wording(), "white")
    assert len(train) == 6 and len(held) == 4, "a picture that is also in the held-out folder is not trained on"
    with pytest.raises(ConfigError, match="leaves no picture for training"):
        folder.split(folder.scan(other, folder.Wording(), "white"), str(other), folder.Wording(), "white")


# Caches


@pytest.fixture
def own(base: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may change."""
    return shutil.copytree(base, tmp_path / "own")


@pytest.fixture
def family(own: Path) -> load.Family:
    return load.family(source.resolve(str(own)))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(path: Path) -> None:
    state = load_file(path)
    next(iter(state.values())).view(-1)[0] += 1e-3
    save_file(state, path)


def test_a_cache_entry_is_never_stale(own: Path, tmp_path: Path) -> None:
    root, cache = tiny.folder(tmp_path / "imgs", 3), Cache(tmp_path / "cache")

    def misses(side: int = 16, background: str = "white") -> int:
        before, family = cache.misses, load.family(source.resolve(str(own)))
        samples = folder.scan(root, folder.Wording(), background).samples
        encode_pictures(family, samples, side, background, cache, lambda: None)
        return cache.misses - before

    assert (misses(), misses()) == (3, 0)
    assert misses(side=18) == 3, "another resolution"
    assert misses(background="black") == 3, "another background"
    tiny.picture(77).save(root / "01.png")
    assert misses() == 1, "an edited picture"
    change_weights(own / "vae" / "diffusion_pytorch_model.safetensors")
    assert misses() == 3, "another autoencoder"
    change(own / "vae" / "config.json", scaling_factor=0.7)
    assert misses() == 3, "another scale of the latents"

    def caption_misses(*captions: str) -> int:
        before, family = cache.misses, load.family(source.resolve(str(own)))
        encode_captions(family, captions, cache, lambda: None)
        return cache.misses - before

    assert (caption_misses("a", "b"), caption_misses("a", "b", "c")) == (3, 1), "'', a, b, then c alone"
    change_weights(own / "text_encoder" / "model.safetensors")
    assert caption_misses("a", "b") == 3, "another text encoder"
    change(own / "tokenizer" / "tokenizer_config.json", model_max_length=11)
    assert caption_misses("a", "b") == 3, "another tokenizer"


def test_a_picture_that_changes_under_way_is_refused(family: load.Family, tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 1)
    samples = folder.scan(root, folder.Wording(), "white").samples
    tiny.picture(77).save(root / "00.png")
    with pytest.raises(DataError, match=r"00\.png: changed while the run was starting"):
        encode_pictures(family, samples, 16, "white", Cache(tmp_path / "cache"), lambda: None)


def test_a_damaged_cache_entry_is_made_again(family: load.Family, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    first = encode_captions(family, ["a"], cache, lambda: None)
    for path in cache.root.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-3])
    again = encode_captions(family, ["a"], cache, lambda: None)
    assert torch.equal(first["a"]["hidden"], again["a"]["hidden"])


def test_a_caption_stays_with_its_picture_under_shuffling(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    from finetune import config
    from finetune.training.loop import micro_batch
    from finetune.training.run import Runner

    runner = Runner(config.parse(settings(data={"caption_dropout": 0}, optim={"batch": 3, "accumulate": 2})))
    runner.prepare()
    runner.encode()
    training, _ = runner.assemble(runner.family.parts.load("unet"))
    latents, seen = runner.encoded.latents, set()
    for step in range(4):
        for slots in training.plan.micro_batches(step, 3):
            batch = micro_batch(training, step, slots)
            for row, slot in enumerate(slots):
                sample = runner.pictures.train[slot.sample]
                own = latents[sample.content]
                assert ((batch.x_0[row] - own.mean).abs() < 6 * own.deviation).all()
                assert batch.captions[row] == sample.caption
                seen.add(slot.sample)
    assert seen == set(range(7))


def test_caption_dropout_puts_what_inference_uses(settings: Callable[..., dict[str, Any]]) -> None:
    from finetune import config
    from finetune.training.run import Runner

    runner = Runner(config.parse(settings()))
    runner.prepare()
    runner.encode()
    training, _ = runner.assemble(runner.family.parts.load("unet"))
    empty = texts(runner.family, [""])[0]["hidden"]
    slots = [Slot(i % 7, i, 1.0) for i in range(200)]

    def share(p: float) -> float:
        said = runner.encoded.batch(slots, 0, 5, p).captions
        return sum(torch.equal(t["hidden"], empty) for t in training.step.texts(said)) / 200

    assert (share(0.0), share(1.0)) == (0, 1)
    assert abs(share(0.25) - 0.25) < 0.1


def test_what_lies_in_a_runs_folder_is_not_trained_on(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 2)
    tiny.picture(5).save((root / "runs" / "lora" / "samples").mkdir(parents=True) or root / "runs" / "lora" / "samples" / "x.png")
    (root / "runs" / "lora" / "run.yaml").write_text("")
    found = folder.scan(root, folder.Wording(), "white")
    assert len(found.samples) == 2 and found.notes["file not used, as it lies in the folder of a run"] == 2


def test_a_trigger_is_a_whole_word(tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 2)
    (root / "00.txt").write_text("category of disc")
    (root / "01.txt").write_text("cat on a disc")
    assert [s.caption for s in folder.scan(root, folder.Wording(trigger="cat"), "white").samples] == [
        "cat, category of disc",
        "cat on a disc",
    ]


def test_a_small_folder_always_has_a_held_out_picture(tmp_path: Path) -> None:
    for count in (2, 3, 5):
        train, held = folder.split(
            folder.scan(tiny.folder(tmp_path / str(count), count), folder.Wording(), "white"), "0.001", folder.Wording(), "white"
        )
        assert len(held) == 1 and len(train) == count - 1


def test_what_may_not_be_looked_at_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch, imgs: Path) -> None:
    def refuse(path: Path, real: Callable[[Path], bool] = Path.is_dir) -> bool:
        if path.suffix == ".png":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(DataError, match="cannot be read"):
        folder.paths(imgs, folder.Found([]))
