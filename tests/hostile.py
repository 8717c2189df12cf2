"""Files that mean harm: texts that would steer a terminal, forge lines, run in a shell, in Markdown or in a library, or lead elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

from finetune import files, tensor_files
from finetune.adapters.contract import KEY
from finetune.header import header_of

CANARY = "canary"  # the file that a payload would make, in the folder that a command runs in
PAYLOADS = (
    "\nerror: forged", "\r\x1b[2Jerror: forged", "\x1b]0;title\x07\x1b[31m", "\u202eforged", "\x9b31m", "x\u2028error: forged",
    f"$(touch {CANARY})", f"`touch {CANARY}`", f"'; touch {CANARY}; '", f'"; touch {CANARY}; "', "%PATH%", "{{7*7}}", "%s%n",
    "<script>forged()</script>", "![](https://example.com/x.png)", "--- \nlicense: forged\n---", "```\nforged\n```", f"../../{CANARY}",
    f"__import__('os').system('touch {CANARY}')", f"!!python/object/apply:os.system ['touch {CANARY}']", "x" * 100_000,
)  # fmt: skip


def adapters(good: Path, folder: Path) -> Iterator[Path]:
    """Copies of an adapter file, each with a payload in every text of its header."""
    tensors, facts = load_file(good), header_of(good).metadata
    contract = json.loads(facts[KEY])
    for i, payload in enumerate(PAYLOADS):
        said = {k: payload for k in facts} | {f"ss_{payload[:50]}": "x"}
        said[KEY] = json.dumps(contract | {k: payload for k in ("base", "trigger", "sampler", "base_revision")})
        path = folder / f"header-{i}.safetensors"
        files.write_bytes(path, tensor_files.safetensors(tensors, said))
        yield path
        path = folder / f"key-{i}.safetensors"
        first = next(iter(tensors))
        files.write_bytes(path, tensor_files.safetensors({**tensors, payload[:900]: tensors[first].clone()}, facts))
        yield path


def pictures(folder: Path) -> Path:
    """A folder of pictures whose names, captions and masks hold payloads, as far as the system lets them."""
    folder.mkdir()
    for i, payload in enumerate(PAYLOADS):
        name = payload.replace("/", "_").replace("\0", "")[:60] + f"-{i}"
        Image.new("RGB", (20, 20), (i, 2 * i, 90)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{payload[:300]} disc", encoding="utf-8")
        Image.new("RGB", (20, 20), (90, i, 2 * i)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_bytes(b"\xff not UTF-8" if i % 2 else b"a disc")
    return folder


def recipes(folder: Path) -> Iterator[Path]:
    for i, payload in enumerate(PAYLOADS):
        wrong = {"model": {"base": payload}, "data": {"path": payload, "trigger": payload}}, {payload: {payload: payload}}
        odd = {"optim": {payload[:50]: 1}, "run": {"name": payload}}
        for j, text in enumerate((*map(json.dumps, (*wrong, odd)), f"data: {payload}\n", payload)):
            path = folder / f"recipe-{i}-{j}.yaml"
            path.write_text(text, encoding="utf-8", errors="replace")
            yield path
