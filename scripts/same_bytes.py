"""Hashes of what runs leave, to hold a change of the code's shape against: the same settings must leave the same bytes.

    python3 scripts/same_bytes.py record before.json     # with the code as it was
    python3 scripts/same_bytes.py compare before.json    # with the code as it is; names what differs, and exits with 1

Kept are, of every run: the files that it hands over, the losses and measures of its metrics, its samples, and the tensors of its last
checkpoint by name; and of each base's caches the tensors by value. Not kept: records of a run's identity, and where caches lie. Runs are
small and use one thread; the hashes hold for one machine and one set of packages. A word after the file takes the cases that hold it.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
ROOT = Path(__file__).parents[1]
sys.path[:0] = [os.environ.get("FT_CODE", str(ROOT)), str(ROOT / "tests")]
MEASURES = ("step", "loss", "loss_smooth", "lr", "held_out_loss", "held_out_by_timestep", "held_out_change")
PLAIN = ["--steps", "4", "--batch", "2", "--seed", "3", "--lr", "1e-3", "--alpha", "2", "--rank", "4", "--checkpoint-every", "2"]
PLAIN += ["--set", "run.log_every=1", "--set", "run.holdout_every=2"]
QUIET = ["--no-holdout", "--no-samples"]


def hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def tensors(path: Path) -> dict[str, str]:
    from safetensors.torch import load_file

    return {
        k: f"{t.dtype} {list(t.shape)} {hashed(t.contiguous().flatten().view(-1).numpy().tobytes())}" for k, t in load_file(path).items()
    }


def measured(path: Path) -> str:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return hashed(json.dumps([[row.get(name) for name in MEASURES] for row in rows]).encode())


def left(out: Path) -> dict[str, str]:
    """What a run's folder holds, by name."""
    kept = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and path.suffix in (".safetensors", ".png") and "checkpoints" not in path.parts and "averages" not in path.parts:
            kept[name] = hashed(path.read_bytes())
    kept["metrics"] = measured(out / "metrics.jsonl")
    for path in [*sorted(out.glob("checkpoints/step-*/*.safetensors"))[-1:], *sorted(out.glob("averages/*.safetensors"))]:
        kept |= {f"{path.relative_to(out).as_posix()} {k}": v for k, v in tensors(path).items()}
    return kept


def cached(root: Path) -> str:
    """Of all latents and captions in a cache, the tensors by value, in whatever files and under whatever names."""
    from safetensors.torch import load_file

    values = set()
    for path in root.rglob("*.safetensors"):
        for t in load_file(path).values():
            if t.is_floating_point() and t.ndim > 1:
                values |= {hashed(row.contiguous().numpy().tobytes()) for row in t}
    return hashed(json.dumps(sorted(values)).encode())


def cases(work: Path) -> dict[str, list[str]]:
    """Command lines by name; `{out}` is the folder of the run."""
    import tiny

    imgs, masks, other = tiny.folder(work / "imgs"), tiny.folder(work / "masked", 6), tiny.folder(work / "other", 4)
    for i in range(4):
        tiny.picture(40 + i, 28).resize((40, 24)).save(other / f"wide-{i}.png")
        (other / f"wide-{i}.txt").write_text("blue square", encoding="utf-8")
    for i in range(6):
        picture = tiny.picture(i).convert("RGBA")
        picture.putalpha(tiny.picture(90 + i).convert("L").point(lambda v: 255 if v > 128 else 40))
        picture.save(masks / f"{i:02d}.png")
    pipelines = tiny.PIPELINES | {"sd-inpainting": tiny.REPAINTING["sd-inpainting"]}
    base = {name: str(make(work / "bases" / name)) for name, make in pipelines.items()}
    demo, owl = ROOT / "finetune" / "bases" / "demo", ROOT / "finetune" / "bases" / "owl"

    def lora(name: str, data: Path = imgs, *more: str) -> list[str]:
        side = ["--resolution", "32"] if name.startswith("flux") else []
        return ["lora", "--data", str(data), "--base", base[name], *PLAIN, *side, *more]

    out = {f"lora {name}": lora(name, imgs, "--holdout", "0.3", "--sample-prompt", "red disc") for name in base}
    for kind in ("rslora", "dora", "loha", "lokr"):
        out[f"{kind} sd"] = lora("sd", imgs, "--adapter", kind, "--targets", "all-linear", *QUIET)
    plain = [*PLAIN[:8], *PLAIN[12:]]  # without --alpha and --rank
    out["oft sd"] = ["lora", "--data", str(imgs), "--base", base["sd"], *plain, "--adapter", "oft", "--rank", "4", *QUIET]
    trigger = ["--trigger", "tok", "--caption-dropout", "0.3", *QUIET]
    out["preserve sdxl"] = lora("sdxl", imgs, *trigger, "--set", "objective.preserve=picture")
    out["preserve text encoder"] = lora("sd", imgs, *trigger, "--set", "objective.preserve=picture", "--set", "method.text_encoder=true")
    out["masks"] = lora("sd", masks, "--set", "data.mask=alpha", "--holdout", "0.4", "--no-samples")
    out["buckets and noise"] = lora(
        "sd-v", other, "--accumulate", "2", "--weighting", "min-snr", "--set", "objective.noise_offset=0.1",
        "--set", "objective.pyramid_levels=2", "--set", "objective.input_perturbation=0.1", "--set", "objective.stratified=true",
        "--set", "objective.loss=huber", "--set", "data.bucket_step=8", "--set", "data.variants=2", "--set", "data.flip=true",
        "--set", "data.random_crop=true", "--set", "data.mask=none", *QUIET,
    )  # fmt: skip
    sources = json.dumps([{"path": str(imgs), "weight": 2}, {"path": str(other), "weight": 0.5, "caption": "a {name}"}])
    out["two sources"] = ["lora", "--base", base["sdxl"], *PLAIN, "--set", f"data.sources={sources}", *QUIET]
    out["ema"] = lora("sd", imgs, "--ema", "0.9", "--set", "optim.ema_posthoc=true", *QUIET)
    out["svd"] = lora("sdxl", imgs, "--adapter", "dora", "--format", "svd", *QUIET)
    out["diffusers"] = lora(
        "sdxl", imgs, "--format", "diffusers", "--set", "method.text_encoder=true", "--set", "method.dropout=0.2", *QUIET
    )
    out["flux kohya"] = lora("flux", imgs, "--format", "kohya", "--targets", "all-linear", *QUIET)
    out["flux lokr"] = lora("flux", imgs, "--adapter", "lokr", *QUIET)
    subject = ["--token", "zq", "--class", "red disc", "--class-count", "4", "--set", "subject.class_steps=3", "--no-samples"]
    out["dreambooth full"] = ["dreambooth", "--data", str(imgs), "--base", base["sd"], *plain, *subject]
    whole = ["dreambooth", "--data", str(imgs), "--base", base["sdxl"], *plain, *subject]
    out["dreambooth text encoder"] = [*whole, "--train-text-encoder", "--set", "run.keep_finished=true"]
    out["dreambooth single"] = ["dreambooth", "--data", str(imgs), "--base", base["sd-v"], *plain, *subject, "--format", "single"]
    out["dreambooth lora"] = ["dreambooth", "--data", str(imgs), "--base", base["sd"], *PLAIN, *subject, "--adapter", "lora"]
    token = ["--token", "<new>", "--vectors", "2", "--no-samples"]
    out["textual inversion"] = ["textual-inversion", "--data", str(imgs), "--base", base["sdxl"], *plain, *token]
    out["pivotal"] = lora("flux", imgs, "--new-token", "<new>", "--trigger", "<new>", "--set", "method.token_until=0.5", *QUIET)
    out["decoder"] = ["vae", "--data", str(imgs), "--base", base["sd"], *plain, "--holdout", "0.3"]
    out["embedded style"] = ["lora", "--data", str(demo), "--base", "tiny", *PLAIN, "--holdout", "0.3", "--sample-prompt", "fox face"]
    out["embedded recipe"] = ["lora", "--data", str(owl), "--recipe", "tiny-pivotal", *plain, *QUIET]
    return {name: [*words, "--out", "{out}"] for name, words in out.items()}


def run(work: Path, only: str) -> dict[str, dict[str, str]]:
    from finetune.cli import app

    found: dict[str, dict[str, str]] = {}
    call: Callable[..., object] = app
    os.environ |= {"FT_CACHE": str(work / "cache"), "FT_CONFIG": str(work / "no-config.yaml")}
    for number, (name, words) in enumerate(cases(work).items()):
        if only not in name:
            continue
        os.environ["FT_CACHE"] = str(work / f"cache-{number}")
        out = work / f"run-{number}"
        words = [word.replace("{out}", str(out)) for word in words]
        call(args=words, standalone_mode=False)
        if "lora" in words[:1]:  # the same line with more steps goes on
            call(args=[*words, "--steps", "6"], standalone_mode=False)
        found[name] = left(out) | {"cache": cached(Path(os.environ["FT_CACHE"]))}
        print(f"{name}: {len(found[name])} hashes")
    return found


def main() -> None:
    action, file, *only = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="same-bytes-") as work:
        now = run(Path(work), " ".join(only))
    if action == "record":
        Path(file).write_text(json.dumps(now, indent=1), encoding="utf-8")
        return
    before = json.loads(Path(file).read_text(encoding="utf-8"))
    wrong = 0
    for name in now.keys() - before.keys():
        print(f"{name}: is new, and compared with nothing")
    for name, hashes in ((name, now[name]) for name in now if name in before):
        for key in sorted(hashes.keys() | before[name].keys()):
            if hashes.get(key) != before[name].get(key):
                wrong += 1
                print(f"DIFFERS {name}: {key}: {before[name].get(key)} is now {hashes.get(key)}")
    print(f"{len(now)} runs, {wrong} differences")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
