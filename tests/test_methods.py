"""DreamBooth, Textual Inversion and pivotal tuning on every family: what trains, what stays, and that files load elsewhere the same."""

import json
import shutil
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from parts import Bases, Make, in_two_parts, readied
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune import cli, config, files
from finetune.adapters import embedding
from finetune.adapters.read import read
from finetune.config.optim import Optim
from finetune.config.precedence import merge_settings
from finetune.data.captions import Wording
from finetune.errors import ConfigError, DataError, FinetuneError
from finetune.families import contents, hashes, load, source
from finetune.families.family import Family
from finetune.methods import adapter, textual_inversion
from finetune.methods.trainees import ParameterGroup
from finetune.preparation.class_pictures import ClassPictures
from finetune.sampling import apply, draw
from finetune.training import optimizer
from finetune.training.run import begun, train

SUBJECT = {"token": "sks", "class_word": "disc", "class_count": 3, "class_steps": 2, "class_batch": 2}
ADAPTER = {"kind": "lora", "rank": 2, "alpha": 1}
METHODS: dict[str, dict[str, Any]] = {
    "dreambooth full": {"subject": SUBJECT, "method": {"kind": "full"}},
    "dreambooth full, text encoder": {"subject": SUBJECT, "method": {"kind": "full", "text_encoder": True}},
    "dreambooth lora": {"subject": SUBJECT, "method": ADAPTER},
    "dreambooth lora, text encoder": {"subject": SUBJECT, "method": {**ADAPTER, "text_encoder": True, "targets": "all-linear"}},
    "textual inversion": {"method": {"kind": "none", "new_tokens": ["<x>"], "vectors": 2}, "data": {"template": "none"}},
    "pivotal": {"method": {**ADAPTER, "new_tokens": ["<x>"], "vectors": 2, "token_until": 0.5}, "data": {"template": "none"}},
}
FAMILIES = ["sd", "sd-v", "sdxl", "flux", "sd3"]
# Without text encoders a method does less of the same, and a second base of a family differs in the schedule alone: 3 to 7 seconds each.
# Stable Diffusion 3's own tests train it by default; each method, the slow ones.
LESS = {("sdxl", "dreambooth full"), ("sdxl", "dreambooth lora"), ("sdxl", "dreambooth full, text encoder")}
LESS |= {("sd-v", name) for name in METHODS if name != "pivotal"} | {("sd3", name) for name in METHODS}
EVERYWHERE = [pytest.param(f, n, marks=[pytest.mark.slow] if (f, n) in LESS else []) for f in FAMILIES for n in METHODS]


@pytest.fixture
def make(bases: Bases, imgs: Path, tmp_path: Path) -> Make:
    """Settings of a short run of a method on a family's tiny pipeline, on pictures without captions of their own."""

    def settings(family: str, name: str, **more: Any) -> dict[str, Any]:
        small = {
            "model": {"base": str(bases(family))}, "data": {"path": str(imgs), "caption_dropout": 0.5, "resolution": 16},
            "optim": {"steps": 4, "batch": 4, "lr": 1e-3}, "run": {"out": str(tmp_path / "out"), "save_dtype": "fp32"},
        }  # fmt: skip
        return merge_settings(small, METHODS[name], more)

    return settings


def family_of(base: Path | str) -> Family:
    return load.family(source.resolve_base(str(base)))


def weights(family: Family) -> dict[str, Tensor]:
    return {f"{p}.{n}": t.clone() for p in family.spec.parts for n, t in family.parts.load(p).state_dict().items()}


@pytest.mark.parametrize(("of", "name"), EVERYWHERE)
def test_every_method_trains_and_its_files_come_back(make: Make, bases: Bases, of: str, name: str, tmp_path: Path) -> None:
    settings = make(of, name, run={"sample_prompt": ["red disc"], "sample_every": 2}, data={"holdout": "0.3"})
    summary = train(config.parse(settings))
    plain, spec = family_of(bases(of)), family_of(bases(of)).spec
    kinds = set(summary["files"]) - {"best"}
    if settings["method"]["kind"] == "full":
        assert kinds == {"model"}
        made = family_of(summary["model"])
        before, after = weights(plain), weights(made)
        moved = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
        taught = set(spec.taught_text) if settings["method"].get("text_encoder") else set()
        assert moved == {spec.denoiser} | taught and before.keys() == after.keys()
        assert json.loads((Path(summary["model"]) / "finetune.json").read_text())["trigger"] == "sks disc"
    else:
        assert kinds == {"lora": {"adapter"}, "none": {"embedding"}}[settings["method"]["kind"]] | (
            {"embedding"} if settings["method"].get("new_tokens") else set()
        )
    if "adapter" in kinds:
        parts = {part for part, _ in read(Path(summary["adapter"])).on(spec.denoiser)}
        assert parts == {spec.denoiser} | (set(spec.taught_text) if settings["method"].get("text_encoder") else set())
    assert (tmp_path / "out" / "samples" / "step-000004.png").exists()
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert sum("held_out_loss" in m for m in metrics) == 2


@pytest.mark.parametrize("name", ["dreambooth full", "dreambooth lora, text encoder", "textual inversion", "pivotal"])
def test_a_run_in_two_parts_is_a_run(make: Make, name: str, tmp_path: Path) -> None:
    """Killed after two of four steps, and gone on with: the same bytes, averaged weights included."""
    whole, parts = in_two_parts(make("sd", name, optim={"ema": 0.5}, run={"checkpoint_every": 2}), tmp_path)
    for kind in whole["files"]:
        a, b = Path(whole[kind]), Path(parts[kind])
        files = [p.relative_to(a) for p in a.rglob("*") if p.is_file()] if a.is_dir() else [Path()]
        assert files and all((a / f).read_bytes() == (b / f).read_bytes() for f in files)


def test_a_runs_folder_is_not_what_it_made(settings: Make, imgs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a run begins with is known by its hash: the file or folder is to be named, and the message names it."""
    for name, kind in (("a", "lora"), ("m", "full")):
        train(config.parse(settings(method={"kind": kind}, optim={"steps": 1}, run={"out": str(tmp_path / name)})))
    words = ["lora", "--data", str(imgs), "--out", str(tmp_path / "out"), "--dry-run"]
    for more, hint in (
        (["--base", str(tmp_path / "m")], f"hint: --base {tmp_path / 'm' / 'model'}"),
        (["--base", str(tmp_path / "a")], "hint: that run made no model"),
        (["--base", "tiny", "--set", f"method.start={tmp_path / 'a'}"], f"hint: --set method.start={tmp_path / 'a' / 'lora.safetensors'}"),
    ):
        assert cli.run([*words, *more]) == 3 and hint in capsys.readouterr().err


@pytest.mark.parametrize("name", list(METHODS))
def test_a_picture_on_the_way_is_that_of_the_file(make: Make, name: str, tmp_path: Path) -> None:
    """Half-way through a run, drawn with the networks that train, and at the end of one of half the steps, drawn with its files."""
    prompt, pictures = "<x>" if "new_tokens" in METHODS[name]["method"] else "sks disc", []
    for steps in (4, 2):
        out = tmp_path / str(steps)
        optim = {"steps": steps, "lr": 0.1, "schedule": "constant"}
        own = {"token_until": 1.0} if name == "pivotal" else {}
        train(config.parse(make("sd", name, optim=optim, method=own, run={"out": str(out), "sample_prompt": [prompt], "sample_every": 2})))
        pictures.append(np.asarray(draw.open_png(next((out / "samples").glob("step-000002-*.png")))).astype(int))
    plain = np.asarray(draw.open_png(next((out / "samples").glob("step-000000-*.png")))).astype(int)
    assert abs(pictures[0] - pictures[1]).max() <= 1 and abs(pictures[0] - plain).max() > 4


def test_new_rows_train_and_no_other_changes(make: Make, bases: Bases) -> None:
    """The optimizer sees the new rows alone; the rest of the text encoder and its table are the base's to the bit."""
    runner = begun(config.parse(make("sdxl", "textual inversion")))
    training = runner.training
    assert {n: tuple(p.shape) for n, p in training.trainable.items()} == {
        "text_encoder.new_tokens": (2, 16), "text_encoder_2.new_tokens": (2, 24),
    }  # fmt: skip
    before = {n: p.detach().clone() for n, p in training.trainable.items()}
    runner.train()
    assert all(not torch.equal(p, before[n]) for n, p in training.trainable.items())
    plain = family_of(bases("sdxl"))
    for part in plain.spec.text:
        ours = {k.replace(".table.", "."): v for k, v in training.step.nets[part].state_dict().items() if not k.endswith(".rows")}
        theirs = plain.parts.load(part).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_norms_stay_near_the_tables() -> None:
    table = nn.Embedding(100, 16)
    rows = textual_inversion.NewRows(table, torch.randn(3, 16) * 50, 100)
    for _ in range(100):
        rows.retract()
    assert torch.allclose(rows.rows.norm(dim=1), torch.full((3,), rows.typical), rtol=0.01)


def test_a_step_over_new_rows_takes_under_a_millisecond() -> None:
    """At CLIP-L's vocabulary, on one thread, where a step over the whole table took 370 ms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = textual_inversion.NewRows(nn.Embedding(49408, 768), torch.randn(4, 768), 49408)
    rows.table.requires_grad_(False)
    adamw = optimizer.make(optimizer.torch_groups([ParameterGroup({"rows": rows.rows}, 5e-3, 0.0)]), Optim(), 0)
    taken = []
    for _ in range(30):
        rows(torch.tensor([[1, 49408, 49411]])).square().sum().backward()
        began = time.perf_counter()
        adamw.step()
        rows.retract()
        taken.append(time.perf_counter() - began)
        adamw.zero_grad()
    torch.set_num_threads(threads)
    assert statistics.median(taken[1:]) < 1e-3, taken  # the first also takes the mean norm of the table


def test_pivotal_freezes_the_embeddings_after_its_share(make: Make) -> None:
    runner = begun(config.parse(make("sd", "pivotal")))
    training = runner.training
    seen: list[Tensor] = []
    settle = training.settle

    def settled(step: int) -> None:
        settle(step)
        seen.append(training.trainable["text_encoder.new_tokens"].detach().clone())

    training.settle = settled
    low = next(n for n in training.trainable if "lora_A" in n)
    runner.train()
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2]) and torch.equal(seen[2], seen[3])
    assert training.trainable[low].grad is None


def test_an_embedding_is_read_by_diffusers_with_the_same_effect(make: Make, bases: Bases) -> None:
    from diffusers import StableDiffusionPipeline

    summary = train(config.parse(make("sd", "textual inversion", method={"vectors": 3}, optim={"lr": 0.05})))
    file = Path(summary["embedding"])
    with safe_open(file, "pt") as f:
        assert list(f.keys()) == ["emb_params"] and f.get_tensor("emb_params").shape == (3, 16)
        assert f.metadata()["token"] == "<x>" and f.metadata()["vectors"] == "3" and "base" in f.metadata()["ft.contract"]
    pipe = StableDiffusionPipeline.from_pretrained(bases("sd"))
    pipe.load_textual_inversion(str(file), token="<x>")
    theirs, _ = pipe.encode_prompt("red <x>", "cpu", 1, False)
    of = family_of(bases("sd"))
    apply.to_words(of, [embedding.read(file)])
    ours = of.texts(["red <x>"])[0]["hidden"]
    assert torch.allclose(ours, theirs[0], atol=1e-6)
    plain = family_of(bases("sd")).texts(["red"])[0]["hidden"]
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_the_embeddings_of_two_encoders_are_read_by_diffusers(make: Make, bases: Bases) -> None:
    from diffusers import StableDiffusionXLPipeline

    file = Path(train(config.parse(make("sdxl", "textual inversion", optim={"lr": 0.05})))["embedding"])
    state = load_file(file)
    assert {k: tuple(t.shape) for k, t in state.items()} == {"clip_l": (2, 16), "clip_g": (2, 24)}
    pipe = StableDiffusionXLPipeline.from_pretrained(bases("sdxl"))
    pipe.load_textual_inversion({"<x>": state["clip_l"]}, token="<x>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion({"<x>": state["clip_g"]}, token="<x>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)
    hidden, _, pooled, _ = pipe.encode_prompt("<x> disc", device="cpu", do_classifier_free_guidance=False)
    of = family_of(bases("sdxl"))
    apply.to_words(of, [embedding.read(file)])
    ours = of.texts(["<x> disc"])[0]
    assert torch.allclose(ours["hidden"], hidden[0], atol=1e-6) and torch.allclose(ours["pooled"], pooled[0], atol=1e-6)


def test_a_full_model_is_a_diffusers_pipeline(make: Make) -> None:
    from diffusers import DiffusionPipeline

    out = Path(train(config.parse(make("sdxl", "dreambooth full, text encoder")))["model"])
    pipe = DiffusionPipeline.from_pretrained(out)
    ours = family_of(out)
    for part in ours.spec.parts:
        theirs = getattr(pipe, part).state_dict()
        assert all(torch.equal(t, theirs[k]) for k, t in ours.parts.load(part).state_dict().items())
    assert not list(out.parent.glob(".tmp-*")) and (out / "scheduler" / "scheduler_config.json").exists()


def test_a_base_of_one_variant_leaves_a_model_of_none(make: Make, bases: Bases, tmp_path: Path) -> None:
    """Parts that were not trained lose the variant's name with those that were: diffusers opens the folder without being told."""
    from diffusers import DiffusionPipeline

    folder = tmp_path / "variant"
    shutil.copytree(bases("sd"), folder)
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    out = Path(train(config.parse(make("sd", "dreambooth full", model={"base": str(folder), "variant": "fp16"})))["model"])
    assert not list(out.rglob("*fp16*"))
    pipe = DiffusionPipeline.from_pretrained(out)
    plain = family_of(bases("sd")).parts.load("text_encoder").state_dict()
    assert all(torch.equal(t, plain[k]) for k, t in pipe.text_encoder.state_dict().items())
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "model.fp16-00001-of-00002.safetensors").write_bytes(b"1")
    (tmp_path / "part" / "model.safetensors.index.fp16.json").write_text('{"weight_map": {"a": "model.fp16-00001-of-00002.safetensors"}}')
    contents.copy(tmp_path / "part", tmp_path / "plain", "fp16", "x")
    assert sorted(f.name for f in (tmp_path / "plain").iterdir()) == ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert "fp16" not in (tmp_path / "plain" / "model.safetensors.index.json").read_text()


def test_a_text_encoders_adapter_is_read_by_diffusers(make: Make, bases: Bases) -> None:
    from diffusers import StableDiffusionPipeline

    summary = train(config.parse(make("sd", "dreambooth lora, text encoder", optim={"lr": 0.02}, method={"text_encoder_lr": 0.02})))
    pipe = StableDiffusionPipeline.from_pretrained(bases("sd"))
    plain, _ = pipe.encode_prompt("sks disc", "cpu", 1, False)
    pipe.load_lora_weights(summary["adapter"])
    theirs, _ = pipe.encode_prompt("sks disc", "cpu", 1, False)
    of = family_of(bases("sd"))
    apply.to_text_encoders(of, [(read(Path(summary["adapter"])), 1.0)])
    ours = of.texts(["sks disc"])[0]["hidden"]
    assert torch.allclose(ours, theirs[0], atol=1e-5) and float(((theirs - plain).norm() / plain.norm()).detach()) > 1e-3


def test_a_text_encoders_adapter_is_read_by_lycoris(make: Make, bases: Bases) -> None:
    import lycoris
    from lycoris.wrapper import LycorisNetwork

    more = {"optim": {"lr": 0.02}, "method": {"text_encoder_lr": 0.02}}
    path = Path(train(config.parse(make("sd", "dreambooth lora, text encoder", **more)))["adapter"])
    of, theirs = family_of(bases("sd")), family_of(bases("sd"))
    apply.to_text_encoders(of, [(read(path), 1.0)])
    LycorisNetwork.LORA_PREFIX = "lora_te"
    encoder = nn.Module()
    encoder.text_model = theirs.parts.load("text_encoder")  # as the layout names it, and as transformers had it before 5
    network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), encoder)
    assert len(network.loras) == sum(part == "text_encoder" for part, _ in read(path).modules)
    network.merge_to(1.0)
    ours, same = (f.texts(["sks disc"])[0]["hidden"] for f in (of, theirs))
    assert torch.allclose(ours, same, atol=1e-5)
    assert not torch.allclose(ours, family_of(bases("sd")).texts(["sks disc"])[0]["hidden"], atol=1e-3)


def test_class_pictures_are_kept_topped_up_and_all_used(make: Make, tmp_path: Path) -> None:
    own = tmp_path / "class"
    tiny.folder(own, 2)
    settings = make("sd", "dreambooth lora", subject={"class_data": str(own), "class_count": 5}, optim={"steps": 2})
    runner = readied(config.parse(settings))
    drawn = sorted(own.glob("class-*.png"))
    assert len(drawn) == 3 and len(runner.data.pictures.classes) == 5
    assert {s.caption for s in runner.data.pictures.classes} == {"disc", "red disc", "blue disc"}
    stamps = [p.stat().st_mtime_ns for p in drawn]
    drawn[1].unlink()
    again = readied(config.parse(settings))
    assert [p.stat().st_mtime_ns for p in sorted(own.glob("class-*.png"))][::2] == stamps[::2], "what is there is used again"
    assert again.identity == runner.identity, "and what is missing comes back the same"
    training = begun(config.parse(settings)).training
    assert {s.weight for step in range(3) for s in training.plan.slots(step)} == {1.0}
    shown = {s.sample for step in range(5) for s in training.plan.slots(step)}
    assert shown == set(range(len(again.data.pictures.train) + 5))


def test_the_weights_are_read_once_for_their_fingerprint(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many class pictures there are: half an hour before every run, where the base is an SDXL on this disk."""
    read = Counter[Path]()
    monkeypatch.setattr(hashes, "sha256", lambda path: read.update([path]) or files.sha256(path))
    monkeypatch.setattr(ClassPictures, "ensure", lambda *_: None)
    monkeypatch.setattr(ClassPictures, "samples", lambda made: [made.path(n) for n in range(made.count)] and [])
    hashes._read_once.cache_clear()
    settings = make("sd", "dreambooth lora", subject={"class_data": str(tmp_path / "class"), "class_count": 50})
    readied(config.parse(settings))
    assert len(read) > 5 and set(read.values()) == {1}


def test_weights_that_change_have_another_fingerprint(bases: Bases, tmp_path: Path) -> None:
    shutil.copytree(bases("sd"), tmp_path / "base")
    where = source.resolve_base(str(tmp_path / "base"))
    before, weights = where.fingerprint("vae"), where.weights("vae")[0]
    assert where.fingerprint("vae") == before
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    files.write_bytes(weights, bytes(data))
    assert where.fingerprint("vae") != before


def test_class_pictures_of_another_class_or_base_are_not_these(make: Make, tmp_path: Path, bases: Bases) -> None:
    """In a person's folder what the base drew for another word is neither theirs nor used; another scheduler makes other pictures."""
    own = tmp_path / "class"
    keys = []
    for word in ("disc", "square"):
        classes = readied(
            config.parse(make("sd", "dreambooth lora", subject={"class_word": word, "class_data": str(own)}))
        ).data.pictures.classes
        assert len(classes) == 3 and {s.caption for s in classes} == {word}
        keys.append({s.name.split("-")[1] for s in classes})
    assert len(list(own.iterdir())) == 6 and keys[0] != keys[1]
    other = tmp_path / "v"
    shutil.copytree(bases("sd"), other)
    how = other / "scheduler" / "scheduler_config.json"
    how.write_text(how.read_text().replace('"epsilon"', '"v_prediction"'))
    jobs = [config.parse(make("sd", "dreambooth lora", model={"base": str(b)})) for b in (bases("sd"), other)]
    assert len({ClassPictures(job, family_of(job.model.base), 16).key for job in jobs}) == 2


def test_what_a_persons_metadata_lists_is_theirs_and_what_is_drawn_is_used(make: Make, tmp_path: Path, capsys: Any) -> None:
    own = tmp_path / "class"
    tiny.folder(own, 3)
    for caption in own.glob("*.txt"):
        caption.unlink()
    first = sorted(own.glob("*.png"))[0].name
    (own / "metadata.jsonl").write_text(json.dumps({"file_name": first, "text": "a disc"}))
    runner = readied(config.parse(make("sd", "dreambooth lora", subject={"class_data": str(own), "class_count": 4})))
    assert sorted(s.caption for s in runner.data.pictures.classes) == ["a disc", "disc", "disc", "disc"]
    assert capsys.readouterr().err.count("not in the metadata file") == 2


def test_a_persons_folders_with_repeats_stay_so_beside_drawn_pictures(make: Make, tmp_path: Path) -> None:
    own = tmp_path / "class"
    tiny.folder(own / "2_a disc", 2)
    for caption in own.rglob("*.txt"):
        caption.unlink()
    settings = make("sd", "dreambooth lora", subject={"class_data": str(own), "class_count": 3})
    seen = []
    for _ in range(2):  # the second time the drawn picture is there
        runner = readied(config.parse(settings))
        seen.append([(s.caption, s.times) for s in runner.data.pictures.classes])
        assert runner.data.pictures.classes and any(own.glob("class-*.png"))
    assert seen[0] == seen[1] and [times for _, times in seen[0]] == [2, 2, 1]


def test_class_pictures_lie_apart_from_the_subjects(make: Make, imgs: Path) -> None:
    with pytest.raises(ConfigError, match=r"--class-data .*: lies in --data"):
        train(config.parse(make("sd", "dreambooth full", subject={"class_data": str(imgs / "class")})))


def test_each_of_several_tokens_stands_where_its_caption_says_it() -> None:
    wording = Wording(trigger="<a> <b>", tokens=("<a>", "<b>"), templates=("a {}",))
    assert [wording.captions(own) for own in (["an <a> cat"], ["red"], [])] == [("an <a> cat",), ("<a> <b>, red",), ("a <a> <b>",)]


def test_a_token_is_read_in_any_case_and_never_inside_a_word(bases: Bases) -> None:
    words = family_of(bases("sdxl")).words
    words.add("<Owl>", 2)
    words.add("ohwx", 2)
    for part, first in words.size.items():
        assert words.ids(part, "a <owl>")[-2:] == words.ids(part, "a <Owl>")[-2:] == [first, first + 1]
        assert words.ids(part, "OHWX, a")[:2] == [first + 2, first + 3]
        assert max(words.ids(part, "johwxes")) < first
    with pytest.raises(ConfigError, match="is a word already"):
        words.add("<Owl>_1", 1)


def test_a_pivotal_run_goes_on_after_its_tokens_have_settled(make: Make, tmp_path: Path) -> None:
    """What trains no longer is not looked for by the canary of the second part."""
    settings = make("sd", "pivotal", method={"token_until": 0.25}, optim={"steps": 24, "batch": 1, "schedule": "constant"})
    whole = train(config.parse(merge_settings(settings, {"run": {"out": str(tmp_path / "whole"), "checkpoint_every": 12}})))
    checkpoints = tmp_path / "whole" / "checkpoints"
    shutil.copytree(checkpoints / "step-00000012", tmp_path / "parts" / "checkpoints" / "step-00000012")
    parts = train(config.parse(merge_settings(settings, {"run": {"out": str(tmp_path / "parts"), "checkpoint_every": 12}})))
    assert all(Path(whole[k]).read_bytes() == Path(parts[k]).read_bytes() for k in ("adapter", "embedding"))


def test_a_text_encoder_that_came_with_dropout_says_one_thing(make: Make, tmp_path: Path) -> None:
    """T5 has some; two runs with one seed are one run, whatever else drew random numbers."""
    files = []
    for n in range(2):
        torch.manual_seed(n)
        summary = train(config.parse(make("flux", "textual inversion", optim={"steps": 2}, run={"out": str(tmp_path / str(n))})))
        files.append(Path(summary["embedding"]).read_bytes())
    assert files[0] == files[1]


def test_all_weights_start_from_the_bases_own_and_may_move_little(make: Make, bases: Bases) -> None:
    """In bf16 the masters are not the rounded weights; at a rate of 1e-7 weights near 1 cannot move, and that is no fault."""
    optim = {"lr": 1e-7, "steps": 12, "warmup": 8}
    summary = train(config.parse(make("sd", "dreambooth full", run={"precision": "bf16"}, optim=optim)))
    before, after = (family_of(b).parts.load("unet").state_dict() for b in (bases("sd"), summary["model"]))
    assert max(float((before[k] - after[k]).abs().max()) for k in before) < 2e-6


@pytest.mark.parametrize("of", ["sd", "sd-v"])
def test_a_single_file_says_what_it_predicts(make: Make, bases: Bases, of: str) -> None:
    """By keys without a value, which is how other tools are told."""
    file = train(config.parse(make(of, "dreambooth full", run={"format": "single"})))["model"]
    how = json.loads((bases(of) / "scheduler" / "scheduler_config.json").read_text())
    with safe_open(file, "pt") as f:
        marks = {"v_pred", "ztsnr"} & set(f.keys())
    assert ("v_pred" in marks) == (of == "sd-v") and ("ztsnr" in marks) == bool(how.get("rescale_betas_zero_snr"))


def test_what_was_not_trained_keeps_its_numbers(make: Make) -> None:
    more = {"run": {"save_dtype": "fp16"}}
    out = Path(train(config.parse(make("flux", "dreambooth full, text encoder", **more)))["model"])
    kinds = [{str(t.dtype) for t in load_file(next((out / p).glob("*.safetensors"))).values()} for p in ("text_encoder", "text_encoder_2")]
    assert kinds == [{"torch.float16"}, {"torch.float32"}]


def test_the_prior_weight_is_the_weight_of_class_pictures(make: Make) -> None:
    def gradient(weight: float, learn: str) -> dict[str, Tensor]:
        from finetune.training import loop

        runner = begun(config.parse(make("sd", "dreambooth full", subject={"prior_weight": weight}, optim={"batch": 2})))
        training = runner.training
        if learn != "both":
            keep = {"instance": 0, "class": 1}[learn]
            slots = training.plan.slots(0)
            training.plan = type("P", (), {
                "batch": training.plan.batch,
                "total_weight": lambda self, step: sum(s.weight for s in slots),
                "micro_batches": lambda self, *a: [[s for s in slots if s.slot % 2 == keep]],
            })()  # fmt: skip
        loop.gradient(training, 0)
        return {n: p.grad.clone() for n, p in training.trainable.items() if p.grad is not None}

    both, instance, classes = (gradient(0.5, x) for x in ("both", "instance", "class"))
    assert all(torch.allclose(both[n], instance[n] + classes[n], atol=1e-6) for n in both)
    full = gradient(1.0, "class")
    name = max(full, key=lambda n: float(full[n].norm()))
    # 0.5 of weight 1.5 against 1 of 2
    assert torch.allclose(classes[name], full[name] * (0.5 / 1.5) / (1 / 2), rtol=1e-4, atol=1e-7)


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "a word as new token": ("textual inversion", {"method": {"new_tokens": ["a"]}}, "token a: is a word already"),
    "too many vectors": ("textual inversion", {"method": {"vectors": 11}}, r"--vectors 11: .* reads 10"),
    "no class": ("dreambooth full", {"subject": {"class_word": None}}, "--token and --class: give both"),
    "no class pictures": ("dreambooth full", {"subject": {"class_count": 0}}, "--class-count 0: .* --prior-weight 0"),
    "odd batch": ("dreambooth full", {"optim": {"batch": 3}}, "--batch 3: class pictures stand in equal number"),
    "one token twice": ("textual inversion", {"method": {"new_tokens": ["<x>", "<x>"]}}, "one stands twice"),
    "nothing trains": ("textual inversion", {"method": {"new_tokens": []}}, "nothing would train without a new token"),
    "no single file": (
        "dreambooth full",
        {"run": {"format": "single"}, "model": {"base": "flux"}},
        "--format single: there is none for flux",
    ),
    "an adapter's format": ("dreambooth full", {"run": {"format": "kohya"}}, "--format kohya: is for adapters"),
    "all weights and tokens": ("dreambooth full", {"method": {"new_tokens": ["<x>"]}}, "method.new_tokens: train with an adapter"),
    "two triggers": ("dreambooth full", {"data": {"trigger": "zwx"}}, "data.trigger: --token and --class are the trigger"),
    "a token that no caption says": (
        "pivotal",
        {"data": {"trigger": "zwx <x>"}, "method": {"new_tokens": ["<x>", "<y>"]}},
        "new token <y>: no caption says it",
    ),
    "a rank of all weights": ("dreambooth full", {"method": {"rank": 4}}, "method.rank: is for --adapter lora"),
    "a rate beside nothing": ("textual inversion", {"method": {"token_lr": 0.1}}, "method.token_lr"),
    "a rate of what is frozen": ("dreambooth full", {"method": {"text_encoder_lr": 0.1}}, "--text-encoder-lr"),
    "tokens that never train": ("pivotal", {"method": {"token_until": 0}}, "method.token_until"),
    "one file and pictures of it": (
        "dreambooth full",
        {"run": {"format": "single", "sample_prompt": ["x"]}},
        "--sample-prompt: the last pictures .* of width 16",
    ),
    "a word with a space": ("textual inversion", {"method": {"new_tokens": ["a b"]}}, "method.new_tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_by_name_before_a_model_is_loaded(
    make: Make, case: str, tmp_path: Path, bases: Bases, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, more, message = BAD[case]
    monkeypatch.setattr("finetune.families.components.Components.load", lambda *a: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=message):
        train(config.parse(make(more.get("model", {}).get("base", "sd"), name, **{k: v for k, v in more.items() if k != "model"})))


def test_a_changed_run_is_refused_before_class_pictures_are_drawn(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config.parse(make("sd", "dreambooth full")))
    monkeypatch.setattr("finetune.preparation.class_pictures.ClassPictures.ensure", lambda *a: pytest.fail("pictures would be drawn"))
    with pytest.raises(ConfigError, match="other settings: optim"):
        train(config.parse(make("sd", "dreambooth full", optim={"lr": 0.5})))
    with pytest.raises(ConfigError, match="steps already"):
        train(config.parse(make("sd", "dreambooth full", optim={"steps": 1})))


def test_an_unwritable_class_folder_is_refused_by_name(make: Make, tmp_path: Path) -> None:
    (tmp_path / "class").write_text("a file")
    with pytest.raises(FinetuneError, match="class"):
        train(config.parse(make("sd", "dreambooth full", subject={"class_data": str(tmp_path / "class" / "x")})))


def test_a_common_word_is_no_rare_token() -> None:
    from finetune.preparation.work import check_subject

    def job(token: str) -> config.Job:
        return config.parse({"data": {"path": "x"}, "subject": {"token": token, "class_word": "bird"}})

    with pytest.raises(ConfigError, match="--token house: is a word that tiny knows"):
        check_subject(job("house"), family_of("tiny"), 2)
    check_subject(job("sks"), family_of("tiny"), 2)


def test_an_embedding_is_looked_into_and_is_no_adapter(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    file = train(config.parse(make("sdxl", "textual inversion")))["embedding"]
    assert cli.run(["adapter", "inspect", file, "--norms"]) == 0
    said = capsys.readouterr().out
    assert "textual-inversion" in said and "clip_g 2" in said and "clip_l 2" in said and "<x>" in said and "problem" not in said
    assert cli.run(["adapter", "verify", file]) == 3 and "give it with --embedding" in capsys.readouterr().err


def test_files_that_are_no_embeddings_of_this_base_are_refused(make: Make, bases: Bases, tmp_path: Path) -> None:
    adapter = train(config.parse(make("sd", "dreambooth lora", optim={"steps": 1})))["adapter"]
    with pytest.raises(DataError, match="is no embedding file"):
        embedding.read(Path(adapter))
    file = tmp_path / "wide.safetensors"
    embedding.write(file, "<w>", {"emb_params": torch.ones(1, 20)}, "fp32", {})
    with pytest.raises(DataError, match=r"rows of 20 numbers, and .* has 16"):
        apply.to_words(family_of(bases("sd")), [embedding.read(file)])
    with pytest.raises(DataError, match="holds no rows for text_encoder"):
        apply.to_words(family_of(bases("sdxl")), [embedding.read(file)])
    with pytest.raises(FinetuneError, match="not finite as fp16"):
        embedding.write(file, "<w>", {"emb_params": torch.full((1, 16), 1e6)}, "fp16", {})


def test_several_tokens_leave_a_file_each(make: Make) -> None:
    settings = make("sd", "textual inversion", method={"new_tokens": ["<x>", "<y>"], "init_word": "red", "vectors": 1})
    summary = train(config.parse(settings))
    tokens = [embedding.read(Path(summary[k])).token for k in ("embedding", "embedding_2")]
    assert tokens == ["<x>", "<y>"] and "denoiser" not in summary


def test_a_regular_expression_cannot_run_for_ever() -> None:
    names = {n: n for n in ["a" * 60 + "!"] * 3}
    with pytest.raises(ConfigError, match="takes too long"):
        adapter.searched("method.targets", r"^(a|aa|a?)+$", names)
    with pytest.raises(ConfigError, match="1001 letters"):
        adapter.searched("method.targets", "a" * 1001, names)
    assert adapter.searched("x", "a!$", names) == ["a" * 60 + "!"]
