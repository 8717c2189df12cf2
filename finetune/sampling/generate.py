"""Pictures from prompts and adapter files, held to what the files say about their use."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import files
from finetune.adapters import file as adapter_file
from finetune.adapters.file import Adapter, Contract
from finetune.config import read_yaml
from finetune.errors import ConfigError, DataError
from finetune.families import load, source
from finetune.families.load import Family
from finetune.families.spec import BASES
from finetune.sampling import draw


@dataclass(frozen=True)
class Request:
    prompts: Sequence[str]
    adapters: Sequence[str] = ()  # path[:weight]
    base: str | None = None
    negative: str = ""
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    count: int = 1
    resolution: int | None = None
    grid: bool = False
    out: Path = Path("pictures")


def parse_adapter(text: str) -> tuple[Path, float]:
    """`file.safetensors:0.8` -> path and weight; a colon in the path itself (Windows) is left alone.

    Raises:
        ConfigError: the weight is not a number.
    """
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists() or "/" in weight or "\\" in weight:
        return Path(text).expanduser(), 1.0
    try:
        return Path(path).expanduser(), float(weight)
    except ValueError as e:
        raise ConfigError(f"--adapter {text}: the weight {weight!r} is not a number", "for example --adapter x.safetensors:0.8") from e


def choose_base(request: Request, adapters: Sequence[Adapter]) -> str:
    """The base that was asked for, else the one that the adapters name.

    Raises:
        ConfigError: they name different ones, or none does.
    """
    if request.base:
        return request.base
    named = {_named(a) for a in adapters if a.contract}
    if len(named) == 1:
        return named.pop()
    if named:
        raise ConfigError(f"the adapters were trained on different bases: {', '.join(sorted(named))}", "choose one with --base")
    if adapters:
        raise ConfigError(f"{adapters[0].path}: does not say its base", "give --base")
    return "tiny"


def _named(adapter: Adapter) -> str:
    """The base in the header; for a local folder, whose path no header holds, the one in the `run.yaml` beside the file."""
    contract = adapter.contract
    assert contract  # noqa: S101  asked only of adapters that have one
    run = adapter.path.parent / "run.yaml"
    if "/" not in contract.base and contract.base not in BASES and run.exists():
        return str(read_yaml(run).get("model", {}).get("base", contract.base))
    return contract.base + (f"@{contract.base_revision}" if contract.base_revision and "/" in contract.base else "")


def check(family: Family, request: Request, contracts: Sequence[tuple[Path, Contract]]) -> str:
    """The sampler to use.

    Raises:
        ConfigError: a sampler that is not legal for the family.
        DataError: a base that contradicts an adapter's contract.
    """
    spec = family.spec
    for path, contract in contracts:
        if contract.family != spec.name:
            raise DataError(f"{path}: trained for {contract.family}, and {family.source.id} is {spec.name}", "choose its base with --base")
        here = family.schedule().prediction_type
        if contract.prediction_type != here:
            raise DataError(
                f"{path}: trained for {contract.prediction_type}, and {family.source.id} predicts {here}", "choose its base with --base"
            )
    sampler = request.sampler or (contracts[0][1].sampler if contracts else spec.sampler)
    if sampler not in spec.samplers:
        raise ConfigError(f"--scheduler {sampler}: not for {spec.name}; legal are {', '.join(spec.samplers)}")
    if sampler == "lcm" and not any("lcm" in name.lower() for name in (family.source.id, *request.adapters)):
        raise ConfigError("--scheduler lcm: needs weights distilled for it; this base and these adapters are not", "leave it out")
    return sampler


def generate(request: Request, say: Any) -> list[dict[str, Any]]:
    """Draws every prompt `count` times, writes PNGs, and returns their paths and parameters."""
    import torch

    files.check_writable(request.out)
    chosen = [parse_adapter(a) for a in request.adapters]
    adapters = [adapter_file.read(path) for path, _ in chosen]
    where = source.resolve(choose_base(request, adapters))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None  # noqa: S101
    family = load.family(where, device, torch.float32 if device.type == "cpu" else torch.float16)
    contracts = [(a.path, c) for a in adapters if (c := a.contract)]
    sampler = check(family, request, contracts)
    sha = family.fingerprint(where.spec.denoiser) if contracts and family.dtype == torch.float32 else None
    for path, contract in contracts:
        if sha and contract.base_sha256 != sha:
            say(f"note: {path} was trained on other weights than this {where.id}")
    pipeline = family.pipeline(sampler=sampler)
    names = [f"adapter-{i}" for i in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        draw.apply(pipeline, adapter, name)
    if names:
        pipeline.set_adapters(names, [weight for _, weight in chosen])
    first = contracts[0][1] if contracts else None
    steps = request.steps or (first.steps if first else where.spec.sample_steps)
    guidance = request.guidance if request.guidance is not None else first.guidance if first else where.guidance or where.spec.guidance
    side = request.resolution or (first.resolution if first else family.resolution)
    if side % family.factor:
        raise ConfigError(f"--resolution {side}: must be a multiple of {family.factor} for this base")
    written, rows = [], []
    for p, prompt in enumerate(request.prompts):
        seeds = [request.seed + i for i in range(request.count)]
        arguments = [{"prompt": prompt, "negative_prompt": request.negative}] * request.count
        images = draw.draw(pipeline, arguments, seeds, steps, guidance, side)
        rows.append((prompt[:40], images))
        for seed, image in zip(seeds, images, strict=True):
            parameters = {
                "prompt": prompt, "negative": request.negative, "seed": seed, "steps": steps, "guidance": guidance, "scheduler": sampler,
                "base": where.id, "adapters": {path.name: weight for path, weight in chosen},
            }  # fmt: skip
            path = request.out / f"{p:03d}-{seed}.png"
            draw.save_png(image, path, parameters)
            written.append({"path": str(path)} | parameters)
    if request.grid:
        draw.save_png(draw.sheet(rows), request.out / "grid.png", {})
        say(f"wrote {request.out / 'grid.png'}")
    say(f"wrote {len(written)} pictures to {request.out}")
    return written
