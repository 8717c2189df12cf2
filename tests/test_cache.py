"""What a cache may never give back, and what a batch is made of."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_scan import look

from finetune.data import encoded, prune
from finetune.data.cache import Cache
from finetune.data.crop import Augment
from finetune.data.encoded import Encoded, Pixels
from finetune.data.index_plan import Slot
from finetune.data.sample import Size
from finetune.draws import StepDraws
from finetune.errors import DataError
from finetune.families import load, source
from finetune.families.family import Family
from finetune.preparation import encoding

pytestmark = pytest.mark.usefixtures("own_cache")
ALL = Pixels()


@pytest.fixture
def own(base: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may change."""
    return shutil.copytree(base, tmp_path / "own")


@pytest.fixture
def family(own: Path) -> Family:
    return load.family(source.resolve_base(str(own)))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(path: Path) -> None:
    state = load_file(path)
    next(iter(state.values())).view(-1)[0] += 1e-3
    save_file(state, path)


def encode(base: Path, root: Path, side: int = 16, pixels: Pixels = ALL) -> tuple[Encoded, int]:
    """What a run would train on, squares of `side` pixels, and how many pictures had to be encoded for it."""
    family = load.family(source.resolve_base(str(base)))
    samples = [replace(s, size=Size(side, side)) for s in look(root, pixels.background).samples]
    jobs, store = encoded.picture_jobs(samples, pixels), encoding.latents_of(family)
    missing = sum(job.name not in store for batch in jobs for job in batch)
    encoding.encode_pictures(family, jobs, pixels, store, lambda count: None)
    return Encoded(samples, store, pixels), missing


def encode_texts(base: Path, *captions: str) -> tuple[Cache, int]:
    family = load.family(source.resolve_base(str(base)))
    names, store = encoded.caption_keys(captions), encoding.texts_of(family)
    missing = sum(name not in store for name in names.values())
    encoding.encode_captions(family, names, store, lambda: None)
    return store, missing


def test_a_cache_entry_is_never_stale(own: Path, tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 3)

    def misses(side: int = 16, background: str = "white", **augment: Any) -> int:
        return encode(own, root, side, Pixels(background, Augment(**augment)))[1]

    assert (misses(), misses()) == (3, 0)
    assert misses(side=20) == 3, "another resolution"
    assert misses(background="black") == 3, "another background"
    assert misses(flip=True) == 3 and misses(flip=True, crop=True, variants=2) == 6, "variants, of which the first are there"
    tiny.picture(77).save(root / "01.png")
    assert misses() == 1, "an edited picture"
    change_weights(own / "vae" / "diffusion_pytorch_model.safetensors")
    assert misses() == 3, "another autoencoder"
    change(own / "vae" / "config.json", scaling_factor=0.7)
    assert misses() == 3, "another scale of the latents"
    assert (encode_texts(own, "a", "b")[1], encode_texts(own, "a", "b", "c")[1]) == (3, 1), "'', a, b, then c alone"
    change_weights(own / "text_encoder" / "model.safetensors")
    assert encode_texts(own, "a", "b")[1] == 3, "another text encoder"
    change(own / "tokenizer" / "tokenizer_config.json", model_max_length=11)
    assert encode_texts(own, "a", "b")[1] == 3, "another tokenizer"


def test_a_picture_that_changes_under_way_is_refused(base: Path, tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 2)
    samples = [replace(s, size=Size(16, 16)) for s in look(root).samples]
    stat = (root / "01.png").stat()
    tiny.picture(77).save(root / "01.png")
    os.utime(root / "01.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    family = load.family(source.resolve_base(str(base)))
    store = encoding.latents_of(family)
    with pytest.raises(DataError, match=r"01\.png: changed while the run was starting"):
        encoding.encode_pictures(family, encoded.picture_jobs(samples, ALL), ALL, store, lambda count: None)


def test_a_damaged_shard_is_made_again(base: Path) -> None:
    first, _ = encode_texts(base, "a")
    kept = {k: v.clone() for k, v in first[encoded.caption_keys(["a"])["a"]].items()}
    for path in first.root.rglob("*.safetensors"):
        data = path.read_bytes()
        path.unlink()  # the mapping of the first stays whole
        path.write_bytes(data[:-3])
    again, missing = encode_texts(base, "a")
    assert missing == 2 and torch.equal(kept["hidden"], again[encoded.caption_keys(["a"])["a"]]["hidden"])
    assert encode_texts(base, "a")[1] == 0


def test_a_row_does_not_depend_on_its_neighbours(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny.folder(tmp_path / "imgs", 11)
    together, _ = encode(base, root)
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "another"))
    for name in ("03.png", "07.png", "10.png"):
        alone = tmp_path / name.partition(".")[0]
        alone.mkdir()
        shutil.copy(root / name, alone)
        (alone / f"{alone.name}.txt").write_text("x")
        one, _ = encode(base, alone)
        sample = next(s for s in together.samples if s.name == name)
        assert torch.equal(one.row(one.samples[0])["x_0.mean"], together.row(sample)["x_0.mean"])
        assert torch.equal(one.row(one.samples[0])["x_0.deviation"], together.row(sample)["x_0.deviation"])


def test_what_was_encoded_is_kept_when_a_signal_breaks_it_off(base: Path, tmp_path: Path) -> None:
    root, done = tiny.folder(tmp_path / "imgs", 20), []

    def interrupt(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    family = load.family(source.resolve_base(str(base)))
    jobs = encoded.picture_jobs([replace(s, size=Size(16, 16)) for s in look(root).samples], ALL)
    with pytest.raises(KeyboardInterrupt):
        encoding.encode_pictures(family, jobs, ALL, encoding.latents_of(family), interrupt)
    assert encode(base, root)[1] == 20 - sum(done) == 4


def test_runs_that_share_a_cache_see_each_others_rows(base: Path, tmp_path: Path) -> None:
    family = load.family(source.resolve_base(str(base)))
    one, two = encoding.texts_of(family), encoding.texts_of(family)
    names = encoded.caption_keys(["a", "b"])
    encoding.encode_captions(family, {"a": names["a"]}, one, lambda: None)
    encoding.encode_captions(family, {"a": names["a"], "b": names["b"]}, two, lambda: None)  # had not seen the first
    one.refresh()
    assert names["b"] in one and torch.equal(one[names["a"]]["hidden"], two[names["a"]]["hidden"])


def test_prune_removes_what_no_run_refers_to(base: Path, tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "imgs", 5)
    all_five, _ = encode(base, root)
    kept = {all_five.pixels.key(s, 0) for s in all_five.samples[:2]}
    expected = {name: all_five.latents[name]["x_0.mean"].clone() for name in kept}
    out, gone = tmp_path / "out", tmp_path / "gone"
    out.mkdir()
    (out / "run.yaml").write_text("")
    prune.note_use(out, {all_five.latents.root: kept})
    prune.note_use(gone, {all_five.latents.root: {all_five.pixels.key(all_five.samples[4], 0)}})
    assert prune.prune()[::2] == (2, 2), "a run that has just begun counts, though its folder is not there yet"
    for path in (tmp_path / "cache" / "runs").glob("*.json"):
        os.utime(path, (0, 0))
    pruned = prune.prune()
    assert (pruned.rows, pruned.runs) == (1, 1) and pruned.size > 0
    left = Cache(all_five.latents.root)
    assert len(left.names) == len(kept) and all(torch.equal(left[n]["x_0.mean"], expected[n]) for n in kept)
    assert prune.prune()[:2] == (0, 0)


def test_a_caption_stays_with_its_picture_under_shuffling(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    from finetune import config
    from finetune.training.loop import batches
    from finetune.training.run import begun

    runner = begun(config.parse(settings(data={"caption_dropout": 0}, optim={"batch": 3, "accumulate": 2})))
    training = runner.training
    seen = set()
    for step in range(4):
        made = batches(training, step)
        for (_, batch), slots in zip(made, training.plan.micro_batches(step, 3), strict=True):
            for row, slot in enumerate(slots):
                sample = runner.prepared.data.pictures.train[slot.sample]
                own = runner.training.encoded.row(sample)
                assert ((batch.columns["x_0"][row] - own["x_0.mean"]).abs() < 6 * own["x_0.deviation"]).all()
                assert batch.captions[row] == sample.caption
                seen.add(slot.sample)
    assert seen == set(range(7))


def test_caption_dropout_puts_what_inference_uses(settings: Callable[..., dict[str, Any]]) -> None:
    from finetune import config
    from finetune.training.run import begun

    runner = begun(config.parse(settings()))
    training = runner.training
    empty = runner.prepared.work.family.texts([""])[0]["hidden"]
    slots = [Slot(i % 7, i, 1.0) for i in range(200)]

    def share(p: float) -> float:
        said = runner.training.encoded.batch(slots, StepDraws(0, 5, range(200), 200), p).captions
        return sum(torch.equal(t["hidden"], empty) for t in training.step.texts(said)) / 200

    assert (share(0.0), share(1.0)) == (0, 1)
    assert abs(share(0.25) - 0.25) < 0.1


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def begins(path: Path) -> int:
    """Where the tensors begin in a safetensors file."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


@pytest.mark.parametrize("where", ["latent", "caption", "header", "key", "older", "cut"])
def test_what_is_damaged_is_made_anew_and_said(
    where: str, train: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Path(train(optim={"steps": 4}, run={"out": str(tmp_path / "a")})["adapter"]).read_bytes()
    shards = list((tmp_path / "cache" / ("texts" if where == "caption" else "latents")).rglob("*.safetensors"))
    assert shards
    for path in shards:
        if where == "cut":
            path.write_bytes(path.read_bytes()[:-9])
        elif where == "older":
            save_file({k: t for k, t in load_file(path).items() if k != "sum"}, path)
        else:  # the largest tensors come last, or all are as large
            flip(path, {"header": 12, "key": begins(path) + 80}.get(where, path.stat().st_size * 3 // 4))
    capsys.readouterr()
    again = Path(train(optim={"steps": 4}, run={"out": str(tmp_path / "b")})["adapter"]).read_bytes()
    assert again == whole
    assert "made anew" in capsys.readouterr().err or where == "key"  # another's key is not found, and encoded as if it were new


@pytest.mark.parametrize("count", [1, 3])
def test_rows_that_are_damaged_again_and_again(count: int, own: Path, tmp_path: Path) -> None:
    """All rows of a file, and some: each process finds them whole in the end."""
    root = tiny.folder(tmp_path / "imgs", count)
    whole = encode(own, root)[0]
    first = [whole.row(sample)["x_0.mean"].clone() for sample in whole.samples]
    for which in (0, -1, None):
        for path in (tmp_path / "cache" / "latents").rglob("*.safetensors"):
            size = (path.stat().st_size - begins(path)) // (3 * count)
            for row in range(count) if which is None else [which % count]:
                flip(path, path.stat().st_size - row * size - 9)
        for _ in range(3):
            made = encode(own, root)[0]

            def again(job: encoded.Variant, latents: Cache = made.latents) -> None:
                encoding.encode_pictures(load.family(source.resolve_base(str(own))), [[job]], ALL, latents, lambda count: None)

            made.encode_again = again
            assert all(torch.equal(made.row(s)["x_0.mean"], mean) for s, mean in zip(made.samples, first, strict=True))


def test_held_out_rows_are_checked_too(train: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = {"data": {"holdout": "0.3"}, "optim": {"steps": 2}}
    first = train(**how, run={"out": str(tmp_path / "a")})
    for path in (tmp_path / "cache" / "latents").rglob("*.safetensors"):
        flip(path, path.stat().st_size * 3 // 4)
    again = train(**how, run={"out": str(tmp_path / "b")})
    assert again["best_held_out_loss"] == first["best_held_out_loss"]
