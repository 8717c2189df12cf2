"""The command line: exit codes, messages that name the culprit, plans, and no traceback anywhere."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from finetune import cli
from finetune.cli import demo, hardware
from finetune.config import Job
from finetune.config.precedence import section_model
from finetune.families import trust

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ft(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run([str(w) for w in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


# words ({imgs}, {base} and {tmp} are filled in), exit code, what the message must hold
REFUSALS: list[tuple[str, int, str]] = [
    ("lora", 2, "--data: missing"),
    ("lora --data {imgs} --rank 0", 2, "--rank: input should be greater than or equal to 1, not '0'"),
    ("lora --data {imgs} --rank many", 2, "--rank: input should be a valid integer"),
    ("lora --data {imgs} --lr nan", 2, "--lr: input should be a finite number"),
    ("lora --data {imgs} --lr -1 --steps 0 --schedule cosin", 2, "--lr: input should be greater than 0, not '-1'\n       --schedule: "),
    ("lora --data {imgs} --alpha 0", 2, "--alpha"),
    ("lora --data {imgs} --name ../x", 2, "--name"),
    ("lora --data {imgs} --holdout 1.5", 2, "--holdout: a fraction must lie between 0 and 1"),
    ("lora --data {imgs} --warmup 600 --steps 500", 2, "optim.warmup 600 is longer than optim.steps 500"),
    ("lora --data {imgs} --rnk 4", 2, "--rank"),
    ("lora --data {imgs} --set optim.stepz=4", 2, "optim.stepz: no such setting; did you mean optim.steps?"),
    ("lora --data {imgs} --set lr=4", 2, "--set lr=4: expected section.key=value"),
    ("lora --data {imgs} --set method.lr=1e-3", 2, "method.lr: no such setting; did you mean optim.lr?"),
    ("lora --data {imgs} --set data.background=nocolour", 2, "data.background"),
    ("lora --data {imgs} --recipe {tmp}/none.yaml", 2, "none.yaml: no such file"),
    ("lora --data {imgs} --recipe {tmp}/twice.yaml", 2, "twice.yaml: not a readable YAML file"),
    ("lora --data {imgs} --recipe {tmp}/list.yaml", 2, "list.yaml: expected sections"),
    ("lora --data {imgs} --recipe {tmp}/typo.yaml", 2, "optm: no such setting; did you mean optim?"),
    ("lora --data {imgs} --base {base} --targets to_z", 2, "method.targets to_z: matches no layer"),
    ("lora --data {imgs} --base {base} --resolution 17", 2, "--resolution 17: must be a multiple of 2"),
    ("lora --data {imgs} --base {base} --precision fp16", 2, "--precision fp16: a CPU cannot train in it"),
    ("lora --data {tmp}/nothing --base {base}", 3, "nothing: no such folder"),
    ("lora --data {tmp}/empty --base {base}", 3, "empty: no pictures"),
    ("lora --data {tmp}/broken --base {base}", 3, "00.png: not a picture of a format that is read"),
    ("lora --data {tmp}/latin --base {base}", 3, "00.txt: not UTF-8"),
    ("lora --data {imgs} --base nosuch", 4, "--base nosuch: no such folder, and not a Hub id"),
    ("lora --data {imgs} --base sana", 4, "--base sana: Sana is not supported yet"),
    ("lora --data {imgs} --base flux.2-dev", 4, "FLUX.2 is not supported yet"),
    ("lora --data {imgs} --base {tmp}/later", 4, "--base later: Sana is not supported yet; known pipelines are"),
    ("lora --data {imgs} --base {tmp}/empty", 4, "holds no readable model_index.json"),
    ("lora --data {imgs} --base {tmp}/unknown", 4, "its pipeline is NoSuchPipeline; known are: StableDiffusionPipeline"),
    ("lora --data {imgs} --base {tmp}/none.safetensors", 4, "none.safetensors: no such file"),
    ("lora --data {imgs} --base {tmp}/x.ckpt", 4, "only .safetensors files are opened"),
    ("lora --data {imgs} --base owner/name", 4, "not in the local cache, and the Hub cannot be reached"),
    ("models --path sd15", 4, "not in the local cache"),
    ("models --path nosuch", 4, "--base nosuch"),
    ("generate", 2, "--prompt: missing"),
    ("generate --prompt x --base {base} --scheduler none", 2, "--scheduler none: not for stable-diffusion; legal are ddim"),
    ("generate --prompt x --base {base} --scheduler lcm", 2, "needs weights distilled for it"),
    ("generate --prompt x --base {base} --steps 0", 2, "--steps"),
    ("generate --prompt x --base tiny --resolution 100", 2, "--resolution 100: tiny draws pictures of multiples of 8 pixels"),
    ("generate --prompt x --base {base} --resolution 99999999", 2, "--resolution"),
    ("lora --data {imgs} --base tiny --resolution 68 --sample-prompt x", 2, "--resolution 68: tiny draws pictures of multiples of 8"),
    ("lora --data {imgs} --base tiny --resolution 68 --sample-prompt x --dry-run", 2, "hint: --resolution 64 or 72; training alone"),
    ("dreambooth --data {imgs} --base {base} --resolution 18 --token sks --class dog", 2, "--resolution 18: random draws"),
    ("dreambooth --data {imgs} --base {base} --token sks --class dog --set subject.class_steps=1001", 2, "subject.class_steps 1001: ddim"),
    ("generate --prompt x --base {base} --steps 1000", 2, "--steps 1000: ddim cannot take so many, or so few"),
    ("generate --prompt x --base {base} --steps 999 --scheduler dpm++", 2, "--steps 999: dpm++ cannot take"),
    ("generate --prompt x --base {base} --steps 3 --scheduler pndm", 2, "--steps 3: pndm cannot take"),
    ("generate --prompt x --base {base} --steps 1001 --scheduler euler", 2, "--steps 1001: euler cannot take"),
    ("generate --prompt x --base {base} --guidance nan", 2, "--guidance"),
    ("generate --prompt x --base {base} --guidance inf", 2, "--guidance"),
    ("generate --prompt x --adapter {tmp}/x.ckpt:nan", 2, "the weight nan must lie between -100 and 100"),
    ("generate --prompt x --adapter {tmp}/x.ckpt:1e30", 2, "the weight 1e30 must lie between"),
    ("generate --base {base} --prompt x\udcff", 2, "--prompt x\\xff: is not UTF-8"),
    ("lora --data {imgs} --out x\udcff", 2, "--out x\\xff: is not UTF-8"),
    ("recipe show x\udcff", 2, "error: x\\xff: is not UTF-8"),
    ("generate --prompt x --adapter {tmp}/none.safetensors", 3, "none.safetensors: no such adapter file"),
    ("generate --prompt x --adapter {tmp}/x.ckpt", 3, "x.ckpt: not a readable safetensors file"),
    ("generate --prompt x --adapter {tmp}/x.ckpt:much", 2, "the weight 'much' is not a number"),
    ("lora --data {imgs} --base {base} --out {tmp}/x.ckpt/out", 5, "cannot write"),
    ("generate --prompt x --base {base} --out {tmp}/x.ckpt/out", 5, "cannot write"),
    ("lora {imgs} --data {tmp}/nothing", 2, "two places of pictures"),
    ("lora {tmp}/a.png {tmp}/b.png --base {base}", 2, "one place of pictures is taken"),
    ("data caption --model x", 2, "--data: missing"),
    ("nosuch", 2, "nosuch"),
]


@pytest.mark.parametrize("words", [*[w for w, code, _ in REFUSALS if code != 2][::3], "nosuch", "lora --data {imgs} --rank 0", "models"])
def test_json_is_one_object_on_every_exit(words: str, ft: Run, imgs: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"x")
    code, out, err = ft(*words.format(imgs=imgs, base=base, tmp=tmp_path).split(), "--json")
    said = json.loads(out)
    assert said["schema_version"] == 1 and said["exit_code"] == code and ("error" in said) == (code > 0)
    if code:
        error = said["error"]
        assert error.keys() == {"code", "message", "hint", "exit_code"} and error["exit_code"] == code
        assert f"error: {error['message']}\n" in err and (error["hint"] is None or f"hint: {error['hint']}\n" in err)
        assert error["code"] == {2: "usage", 3: "data", 4: "access", 5: "resources"}[code]


def keys(value: Any, name: str = "") -> set[str]:
    """The keys of an answer, but for those that are names out of the data."""
    if isinstance(value, list):
        return set().union(*(keys(v, name) for v in value))
    if not isinstance(value, dict) or name in (
        "buckets",
        "versions",
        "kinds",
        "parts",
        "dtypes",
        "ranks",
        "adapters",
        "most_frequent_tags",
    ):
        return set()
    below = set().union(*(keys(v, k) for k, v in value.items()))
    return below if name in ("recipes", "settings") else below | value.keys()


def test_answers_have_snake_case_keys_that_the_document_names(ft: Run, imgs: Path, base: Path) -> None:
    train = ["lora", "--data", imgs, "--base", base, "--steps", 1, "--out", "out"]
    for words in (
        [*train, "--trigger", "tok", "--new-token", "tok", "--dry-run"],
        [*train, "--trigger", "<a> <b>", "--new-token", "<a>", "--new-token", "<b>"],
        ["generate", "--base", base, "--adapter", "out/lora.safetensors", "--prompt", "a", "--steps", 1],
        ["adapter", "inspect", "out/lora.safetensors"],
        ["adapter", "verify", "out/lora.safetensors", "--base", base],
        ["adapter", "convert", "out/lora.safetensors", "--to", "diffusers", "--out", "other.safetensors"],
        ["data", "check", "--data", imgs],
        ["data", "preview", "--data", imgs, "--base", base],
        ["recipe", "check", "tiny-style"],
        ["recipe", "ls"],
        ["models"],
        ["config"],
    ):
        code, out, err = ft(*words, "--json")
        answer = json.loads(out)
        assert code == answer["exit_code"] == 0, err
        assert all(re.fullmatch("[a-z][a-z0-9_]*", key) for key in keys(answer)), keys(answer)
        if words[0] not in ("adapter", "data"):
            told = (Path(__file__).parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
            own = answer.keys() - {"written_as", "versions"}
            assert all(f"`{key}`" in told for key in own), own


def test_a_mistake_of_ours_is_an_object_too_and_a_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.families import source

    monkeypatch.setattr(source, "cached", lambda hub: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.run(["models", "--json"])
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "failed"


@pytest.mark.parametrize("command", ["lora --json --help", "models --path tiny"])
def test_what_asks_for_no_json_gets_none(command: str, ft: Run) -> None:
    code, out, _ = ft(*command.split())
    assert code == 0 and not out.startswith("{")


def test_a_stdout_of_another_encoding_shows_what_it_can(tmp_path: Path) -> None:
    (tmp_path / "été.yaml").write_text("# ft lora, λ\noptim: {steps: 1}\n", encoding="utf-8")
    words = [sys.executable, "-m", "finetune", "recipe", "show", "été.yaml"]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"# ft lora, \\u03bb\noptim: {steps: 1}\n"), done.stderr


@pytest.mark.parametrize(("number", "hint"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "permissions"), (errno.EROFS, "read-only"),
    (errno.ENOTDIR, "in the way"), (errno.EISDIR, "in the way"), (errno.ENOENT, "check the path")])  # fmt: skip
def test_the_remedy_fits_the_reason(number: int, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from safetensors import SafetensorError

    from finetune import files
    from finetune.errors import ResourceError

    for error in (OSError(number, "no"), SafetensorError(f"I/O error: no (os error {number})")):
        with pytest.raises(ResourceError, match="cannot write") as refused, files.disk_errors(tmp_path / "x"):
            raise error
        assert hint in refused.value.hint and ("space" in refused.value.hint) == (number == errno.ENOSPC)
        with pytest.raises(ResourceError) as refused, files.disk_errors(files.cache_root() / "runs" / "x"):
            raise error
        assert "FT_CACHE" in refused.value.hint


@pytest.mark.parametrize(
    "value", ['run.out="a\\0b"', 'run.sample_prompt=[x, "\\ud800"]', 'data.path="a\\0"', 'method.rank_pattern={"\\0": 2}']
)
def test_what_is_no_text_is_refused_by_the_settings_name(value: str, ft: Run, imgs: Path) -> None:
    shown = {"data.path": "--data", "run.out": "--out", "run.sample_prompt": "--sample-prompt"}
    name = value.split("=")[0]
    code, _, err = ft("lora", "--dry-run", *([] if "path" in value else ["--data", imgs]), "--set", value)
    assert code == 2 and f"{shown.get(name, name)}: holds a null or half a character" in err


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
def test_a_working_folder_whose_name_is_no_text(ft: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "q\udcff"
    tiny.folder(here / "imgs", 2)
    monkeypatch.chdir(here)
    assert ft("data", "check", "--data", "imgs")[0] == 0
    assert ft("lora", "--data", "imgs", "--base", base, "--steps", 1, "--out", "out")[0] == 0
    code, out, _ = ft("generate", "--adapter", "out/lora.safetensors", "--prompt", "a", "--steps", 1, "--json")
    assert code == 0 and Path(json.loads(out)["pictures"][0]["path"]).exists()


def test_a_black_picture_is_refused_and_of_a_run_said(base: Path, imgs: Path, ft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.families.family import Family

    decode = Family.decode
    monkeypatch.setattr(Family, "decode", lambda *words: decode(*words) * float("nan"))
    code, _, err = ft("generate", "--base", base, "--prompt", "a", "--steps", 2)
    assert code == 1 and "the picture of seed 0 is black" in err and "--guidance" in err
    words = ("--sample-prompt", "a", "--sample-every", 1, "--steps", 1, "--out", "out")
    code, _, err = ft("lora", "--base", base, "--data", imgs, *words)
    assert code == 0 and err.count("note: sample 'a' at step") == 2, "a run is not lost for a picture"


@pytest.mark.parametrize(("words", "code", "message"), REFUSALS, ids=[w for w, _, _ in REFUSALS])
def test_refusals(words: str, code: int, message: str, ft: Run, imgs: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice.yaml").write_text("optim:\n  lr: 1\n  lr: 2\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "typo.yaml").write_text("optm:\n  lr: 1e-4\n")
    (tmp_path / "x.ckpt").write_bytes(b"x")
    tiny.folder(tmp_path / "broken", 2)
    (tmp_path / "broken" / "00.png").write_bytes(b"\x89PNG")
    tiny.folder(tmp_path / "latin", 2)
    (tmp_path / "latin" / "00.txt").write_bytes("café".encode("latin-1"))
    for name, pipeline in (("unknown", "NoSuchPipeline"), ("later", "SanaPipeline")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    found, out, err = ft(*words.format(imgs=imgs, base=base, tmp=tmp_path).split())
    assert (found, out) == (code, "")
    assert err.split("\n")[-2].startswith(("error: ", "hint: ", "       ")) and message in err


def test_precedence_is_defaults_user_config_recipe_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune import config

    user, recipe = tmp_path / "user.yaml", tmp_path / "recipe.yaml"
    user.write_text("optim: {steps: 1, batch: 1, lr: 1e-4}")
    recipe.write_text("optim: {steps: 2, batch: 2}")
    monkeypatch.setenv("FT_CONFIG", str(user))
    job = config.resolve({"data": {"path": "x"}, "optim": {"steps": "3"}}, recipe)
    assert (job.optim.steps, job.optim.batch, job.optim.lr, job.optim.accumulate) == (3, 2, 1e-4, 1)


def test_a_dumped_job_reads_back_equal(settings: Any, tmp_path: Path) -> None:
    from finetune import config

    job = config.parse(settings(run={"sample_prompt": ["no", "1e-4", "été: #x"]}))
    (tmp_path / "run.yaml").write_text(config.dump(job), encoding="utf-8")
    assert config.parse(config.read_yaml(tmp_path / "run.yaml")) == job


def test_help_tells_the_same_rates_in_every_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.bases import TINY
    from finetune.cli import flags

    monkeypatch.chdir(TINY)
    assert flags._default("optim", "lr", {}) == " [0.0002; on tiny 0.0015]"


@pytest.mark.parametrize(
    ("command", "needs"), [("lora", ""), ("dreambooth", "--token sks --class dog"), ("textual-inversion", "--token <x>"), ("vae", "")]
)
def test_help_tells_a_commands_own_defaults(command: str, needs: str, imgs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from finetune.cli import flags, train
    from finetune.config.method import usual_rate

    table = {"lora": flags.LORA, "dreambooth": flags.DREAMBOOTH, "textual-inversion": flags.TEXTUAL_INVERSION, "vae": flags.VAE}[command]
    words = dict(zip(needs.split()[::2], needs.split()[1::2], strict=True))
    given = flags.nested_settings(
        table, {w.strip("-").replace("class", "class_"): [v] if v == "<x>" else v for w, v in words.items()} | {"data": str(imgs)}
    )
    job = train.make_job(command, given, None, [], flags.names(table))
    app: Any = typer.main.get_command(cli.app)
    shown = {p.opts[0]: p.help for p in app.commands[command].params}
    for flag, setting in table.items():
        section, key = setting.split(".")
        value = getattr(getattr(job, section), key)
        if flag == "--lr":
            assert f"[{usual_rate(job.method.kind, 'adamw', 'sd15'):g}; on tiny {value:g}]" in shown[flag]
        elif flag in ("--base", "--adapter"):
            assert (value if value != "full" else "all weights") in shown[flag]
        elif "[" in shown[flag]:
            assert shown[flag].endswith(f"[{' '.join(value) if isinstance(value, tuple) else value}]"), flag
        else:
            assert value in (None, (), "", str(imgs)) or isinstance(value, bool) or flag in words, flag


def test_config_shows_the_users_own(ft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_CONFIG", str(tmp_path / "mine.yaml"))
    assert f"# your configuration: {tmp_path}/mine.yaml, which is not there" in ft("config")[1]
    (tmp_path / "mine.yaml").write_text("optim: {steps: 77}")
    said = json.loads(ft("config", "--json")[1])
    assert said["user_config_exists"] and said["settings"]["optim.steps"] == {
        "default": 500, "required": False, "help": "optimizer steps", "yours": 77
    }  # fmt: skip
    assert "yours" not in said["settings"]["optim.batch"] and "77 (yours; else 500)" in ft("config")[1]
    (tmp_path / "mine.yaml").write_text("objective: {preserve: dog}")  # needs a trigger, which a flag may give
    assert "dog (yours; else None)" in ft("config")[1]
    (tmp_path / "mine.yaml").write_text("optim: {stepz: 77}")
    code, _, err = ft("config")
    assert code == 2 and "mine.yaml: optim.stepz: no such setting" in err


def test_every_setting_has_help() -> None:
    for section in Job.model_fields:
        for name, field in section_model(section).model_fields.items():
            assert field.description, f"{section}.{name}"


def test_a_dry_run_tells_the_plan_and_loads_no_weights(ft: Run, imgs: Path, base: Path, tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"  # configs only: weights cannot be loaded
    shutil.copytree(base, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    words = ("lora", "--data", imgs, "--base", bare, "--rank", 4, "--steps", 14, "--batch", 2)
    code, out, _ = ft(*words, "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["adapted_layers"] == 32 and plan["epochs"] == 3.5 and plan["pictures"] == 7
    assert not (tmp_path / "runs").exists()
    code, out, _ = ft(*words, "--dry-run")
    assert f"trains: {plan['trainable_parameters']:,} of the denoiser parameters in 32 layers" in out
    # The plan's count is the run's.
    code, _, err = ft("lora", "--data", imgs, "--base", base, "--rank", 4, "--steps", 1)
    assert f"{plan['trainable_parameters']:,} parameters" in err and code == 0


@pytest.mark.parametrize("command", ["lora", "dreambooth --token sks --class dog", "ti --token <x>", "data check", "data preview"])
def test_the_place_of_pictures_may_stand_alone(command: str, ft: Run, imgs: Path, base: Path) -> None:
    name, *more = command.split() if not command.startswith("data") else [command]
    plan = [] if command.startswith("data") else ["--dry-run"]
    answers = []
    for place in ([imgs], ["--data", imgs], [imgs, "--data", f"{imgs}/"]):
        code, out, err = ft(*name.split(), *place, *more, "--base", base, *plan, "--json")
        assert code == 0, err
        answers.append(out)
    assert answers[0] == answers[1] == answers[2]


def test_train_then_generate(ft: Run, imgs: Path, base: Path, tmp_path: Path) -> None:
    words = ["lora", "--data", imgs, "--base", base, "--steps", 2, "--holdout", 0.4, "--sample-prompt", "red", "--sample-every", 1]
    code, out, _err = ft(*words, "--out", "out", "--name", "x", "--trigger", "tok", "--json")
    summary = json.loads(out)
    assert code == 0 and Path(summary["adapter"]) == Path("out/x.safetensors")
    for name in ("run.yaml", "metrics.jsonl", "summary.json", "x-best.safetensors"):
        assert (tmp_path / "out" / name).exists(), name
    assert {p.name for p in (tmp_path / "out" / "samples").iterdir()} >= {"step-000001.png", "step-000002.png"}
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics[-1]["held_out_by_timestep"]) == 5 and "held_out_change_low" in metrics[-1]
    code, out, _ = ft("generate", "--adapter", "out/x.safetensors:0.5", "--prompt", "a", "--count", 2, "--steps", 2, "--grid", "--json")
    drawn = json.loads(out)["pictures"]
    assert code == 0 and len(drawn) == 2 and Path("pictures/grid.png").exists()
    with Image.open(drawn[1]["path"]) as image:
        assert json.loads(image.info["parameters"])["adapters"] == {"x.safetensors": 0.5}
    # Weight 0 is the base; several adapters add up.
    asked: dict[str, list[float]] = {"none": [], "zero": [0], "one": [1], "halves": [0.5, 0.5]}
    drawn = {}
    for name, weights in asked.items():
        more = [w for weight in weights for w in ("--adapter", f"out/x.safetensors:{weight}")]
        ft("generate", "--base", base, "--prompt", "a", "--steps", 2, "--guidance", 3, "--out", name, *more)
        with Image.open(f"{name}/000-0.png") as image:
            drawn[name] = np.asarray(image, dtype=int)
    assert (drawn["none"] == drawn["zero"]).all() and abs(drawn["one"] - drawn["halves"]).max() <= 1


def test_an_adapter_of_another_prediction_type_is_refused(ft: Run, imgs: Path, base: Path, tmp_path: Path) -> None:
    other = tiny.stable_diffusion(tmp_path / "v", "v_prediction")
    ft("lora", "--data", imgs, "--base", base, "--steps", 1, "--out", "out")
    code, _, err = ft("generate", "--base", other, "--adapter", "out/lora.safetensors", "--prompt", "x")
    assert code == 3 and "trained for epsilon, and v predicts v_prediction" in err


def test_models(ft: Run) -> None:
    code, out, _ = ft("models")
    assert code == 0 and out.splitlines()[0].startswith("tiny") and "sd15" in out
    code, out, _ = ft("models", "--path", "tiny")
    assert (Path(out.strip()) / "model_index.json").exists()
    code, out, _ = ft("models", "tiny", "--json")
    facts = json.loads(out)
    assert code == 0 and {"fox face", "tulip"} <= set(facts["draws"]) and Path(facts["sheet"]).exists()
    for prompt in demo.SUBJECTS:
        assert prompt in facts["draws"], "the demo draws what the base was taught"
    assert "not downloaded yet: ft models --download sdxl" in ft("models", "sdxl")[1]
    code, _, err = ft("models", "sd9")
    assert code == 2 and "sd9: is no name of a base" in err


def test_without_a_base_the_choice_is_said(ft: Run, imgs: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    _, out, err = ft("lora", "--data", imgs, "--dry-run", "--json")
    assert json.loads(out)["base"] == "tiny" and "base: tiny: draws 64-pixel emoji (no accelerator was found" in err
    monkeypatch.setenv("FT_BASE", str(base))
    _, out, err = ft("lora", "--data", imgs, "--dry-run", "--json")
    assert json.loads(out)["base"] == base.name and "from FT_BASE" in err


@pytest.mark.parametrize(
    ("build", "system", "said"),
    [
        ("cuda: Optional[str] = None", "Linux", "`pip install --force-reinstall torch==2.13.0`"),
        ("cuda: Optional[str] = None", "Windows", "https://pytorch.org/get-started/locally"),
        ("cuda: Optional[str] = '13.0'", "Linux", None),
    ],
)
def test_a_card_that_torch_was_not_built_for_is_said(
    build: str, system: str, said: str | None, ft: Run, imgs: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{build}\nhip: Optional[str] = '7.0'\n")
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "nvidia")
    monkeypatch.setattr("finetune.cli.hardware.shutil.which", lambda name: None)
    monkeypatch.setattr("finetune.cli.hardware.platform.system", lambda: system)
    monkeypatch.setattr(hardware, "version", lambda package: "2.13.0+cpu")
    monkeypatch.setattr(hardware, "find_spec", lambda package: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    words = ("lora", "--data", imgs, "--base", base, "--dry-run")
    assert "NVIDIA" not in ft(*words)[2], "no card"
    (tmp_path / "nvidia").mkdir()
    line = next((line for line in ft(*words)[2].splitlines() if line.startswith("device: cpu, though an NVIDIA card")), None)
    assert said in line if said and line else line is said


def test_what_the_hub_answers_is_an_access_error(ft: Run, imgs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    answers = {
        GatedRepoError: "gated\nhint: accept its terms at https://huggingface.co/owner/name",
        RepositoryNotFoundError: "no such model on the Hub",
        RevisionNotFoundError: "no revision v9",
    }
    for error, message in answers.items():

        def download(*_: Any, error: Any = error, **__: Any) -> None:
            raise error.__new__(error)  # its constructor wants a response

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        code, _, err = ft("lora", "--data", imgs, "--base", "owner/name@v9")
        assert code == 4 and message in err


def test_tensorboard(ft: Run, imgs: Path, base: Path, tmp_path: Path) -> None:
    code, _, _ = ft("lora", "--data", imgs, "--base", base, "--steps", 1, "--set", "run.tensorboard=true", "--out", "out")
    assert code == 0 and list((tmp_path / "out" / "tensorboard").glob("events.*"))


def test_an_adapter_of_another_shape_or_of_other_weights_is_refused(ft: Run, imgs: Path, base: Path, tmp_path: Path) -> None:
    ft("lora", "--data", imgs, "--base", base, "--steps", 1, "--out", "out")
    words = ("generate", "--adapter", "out/lora.safetensors", "--prompt", "x", "--steps", 1)
    code, _, err = ft(*words, "--base", "tiny")
    assert code == 3 and "tiny has another width at unet." in err
    changed = shutil.copytree(base, tmp_path / base.name)
    state = load_file(changed / "unet" / "diffusion_pytorch_model.safetensors")
    next(iter(state.values())).view(-1)[0] += 1
    save_file(state, changed / "unet" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "out" / "run.yaml").write_text(f"model: {{base: {changed}}}\ndata: {{path: x}}\n")
    trust.remember(str(changed))
    code, _, err = ft(*words)
    assert code == 3 and "trained on other weights" in err
    assert ft(*words, "--base", changed)[0] == 0, "asked for by name, it is used"


def test_a_base_that_is_not_whole_is_refused(ft: Run, imgs: Path, base: Path, tmp_path: Path) -> None:
    for part, file in (
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
        ("tokenizer", "tokenizer.json"),
    ):
        broken = shutil.copytree(base, tmp_path / part)
        (broken / part / file).unlink()
        code, _, err = ft("lora", "--data", imgs, "--base", broken)
        assert code == 4 and part in err, err
    broken = shutil.copytree(base, tmp_path / "cut")
    (broken / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 50)
    code, _, err = ft("lora", "--data", imgs, "--base", broken)
    assert code == 4 and "cannot load vae" in err
    assert ft("lora", "--data", imgs, "--base", "my models/sd")[0] == 4


def test_half_precision_trains_and_draws(ft: Run, imgs: Path, base: Path, tmp_path: Path) -> None:
    words = ("lora", "--data", imgs, "--base", base, "--steps", 2, "--precision", "bf16", "--sample-prompt", "a", "--sample-every", 1)
    code, _, err = ft(*words, "--out", "out")
    assert code == 0, err
    code, _, err = ft("generate", "--adapter", "out/lora.safetensors", "--prompt", "x", "--steps", 1)
    assert code == 0, "the file names the base by its bytes, whatever the precision it was trained in"
    from finetune.families import load, source
    from finetune.sampling import draw

    for dtype in (torch.bfloat16, torch.float16):  # what an accelerator draws with
        family = load.family(source.resolve_base(str(base)), dtype=dtype)
        pair = (family.texts(["a"])[0], family.unconditional(family.texts([""])[0]))
        assert draw.draw(family, family.pipeline(), [pair], [0], 2, 3.0, 16)[0].size == (16, 16)


def test_plausible_settings_do_not_crash(ft: Run, imgs: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("lora", "--data", imgs, "--base", base, "--steps", 1)
    assert ft(*words, "--seed", 2**40, "--set", "data.holdout=0.1", "--set", "data.trigger=7")[0] == 0
    metrics = (tmp_path / "runs" / "lora" / "metrics.jsonl").read_text()
    assert "Infinity" not in metrics and "NaN" not in metrics
    code, _, err = ft(*words, "--set", "optim.betas=[0.9, 1.0]")
    assert code == 2 and "optim.betas" in err
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    code, _, err = ft(*words, "--set", "run.tensorboard=true", "--out", "other")
    assert code == 2 and "tensorboard is not installed" in err


def test_captions_cannot_steer_the_terminal(ft: Run, base: Path, tmp_path: Path) -> None:
    root = tiny.folder(tmp_path / "a", 2)
    (root / "00.txt").write_text("\x1b[2J a caption that is longer than the window of the text encoder", encoding="utf-8")
    code, out, err = ft("lora", "--data", root, "--base", base, "--dry-run")
    assert code == 0 and "\x1b" not in out + err and "is cut to" in out
    code, out, err = ft("lora", "--data", root, "--base", base, "--steps", 1)
    assert code == 0 and "\x1b" not in out + err


def test_a_full_disk_is_a_resource_error(ft: Run, imgs: Path, base: Path) -> None:
    resource = pytest.importorskip("resource")
    ft("lora", "--data", imgs, "--base", base, "--steps", 1, "--out", "warm")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        code, _, err = ft("lora", "--data", imgs, "--base", base, "--steps", 1, "--out", "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 5 and "cannot write" in err


def test_the_batch_does_not_choose_the_picture(base: Path, tmp_path: Path) -> None:
    """Two prompts, three seeds, one at a time and four at a time: the same files, in the same order, to a level of 255."""
    import numpy as np

    from finetune.sampling import draw
    from finetune.sampling.generate import Request, generate

    made = [
        generate(Request(["red", "blue"], base=str(base), steps=2, count=3, out=tmp_path / str(n), batch=n), lambda text: None)
        for n in (1, 4)
    ]
    names = [[Path(p["path"]).name for p in one] for one in made]
    assert names[0] == names[1] == [f"{p:03d}-{seed}.png" for p in range(2) for seed in range(3)]
    pictures = [np.stack([np.asarray(draw.open_png(p["path"])).astype(int) for p in one]) for one in made]
    assert abs(pictures[0] - pictures[1]).max() <= 1 and len({p.tobytes() for p in pictures[0]}) == 6
    assert (draw.at_once(64), draw.at_once(512), draw.at_once(1024), draw.at_once(2048)) == (16, 4, 1, 1)


@pytest.mark.parametrize("text", ["optim: 5", "optim: {lr: fast}", "optim: {lr: 1e-3, optimizer: [x]}", "optim: {lr: 1e-3}\nmodel: [a]"])
def test_a_recipe_that_is_malformed_is_refused_whatever_the_flags(text: str, imgs: Path, tmp_path: Path) -> None:
    from finetune.cli.train import make_job
    from finetune.errors import ConfigError

    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"optim|--lr|--optimizer|model"):
        make_job("lora", {"data": {"path": str(imgs)}, "method": {"kind": "loha"}}, tmp_path / "bad.yaml", [], {})


def test_mistakes_stand_on_lines_of_their_own(imgs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Together they may be longer than any one is shown."""
    assert cli.run(["vae", str(imgs), "--set", "method.rank=4", "--set", "objective.noise_offset=0.1", "--set", "data.trigger=x"]) == 2
    said = capsys.readouterr().err.splitlines()
    named = ["method.rank", "data.trigger", "objective.noise_offset"]
    assert [line.removeprefix("error:").split(":")[0].strip() for line in said[:3]] == named, said


def test_a_recipes_rate_is_for_what_the_recipe_trains(imgs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from finetune.cli.train import make_job
    from finetune.config import recipes

    data = {"data": {"path": str(imgs)}}

    def rates(command: str, name: str, cases: list[dict[str, Any]]) -> list[float]:
        return [make_job(command, data | flags, recipes.recipe_path(Path(name)), [], {}).optim.lr for flags in cases]

    lora, given = {"method": {"kind": "lora"}}, {"optim": {"lr": 1e-4}}
    assert rates("dreambooth", "sd15-dreambooth", [{}, lora, lora | given, {"method": {"kind": "full"}}]) == [5e-6, 1e-4, 1e-4, 5e-6]
    assert capsys.readouterr().err.count("the recipe's rate 5e-06 becomes 0.0001 for lora with adamw on sd15") == 1
    optimizers: list[dict[str, Any]] = [{"optim": {"optimizer": name}} for name in ("adamw", "lion", "prodigy", "adafactor")]
    assert rates("lora", "tiny-style", optimizers) == [3e-3, 6e-4, 1.0, 3e-3]
    assert rates("lora", "tiny-style", [{"method": {"kind": "dora"}}]) == [3e-3]
    assert rates("lora", "sd15-style", [{"model": {"base": base}} for base in ("sd15", "owner/other", "tiny")]) == [1e-4, 1e-4, 7.5e-4]
    assert capsys.readouterr().err.count("the recipe's rate") == 3
