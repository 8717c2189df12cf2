"""What a file's header says: how the adapter must be used, and what other tools look for."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

KEY = "ft.contract"


@dataclass(frozen=True)
class Contract:
    """How the adapter must be used: what `ft generate` honours and refuses to contradict."""

    base: str  # short name, Hub id or folder name; never a path
    base_revision: str | None
    base_sha256: str  # of the denoiser the adapter was trained on
    family: str
    prediction_type: str
    resolution: int
    trigger: str | None
    guidance: float
    steps: int  # sampling steps
    sampler: str
    rank: int
    training_alpha: float
    trained_steps: int
    clip_skip: int = 0
    adapter: str = "lora"
    zero_terminal_snr: bool = False  # the base's schedule is to be rescaled so that it ends in pure noise
    timestep_spacing: str | None = None  # of sampling then: for other readers, as `ft generate` knows both
    guidance_rescale: float = 0.0

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "Contract | None":
        """The one in a file's header, or None for a file of another tool."""
        try:
            made = cls(**json.loads(metadata[KEY]))
        except (KeyError, ValueError, TypeError):
            return None
        texts = (made.base, made.base_sha256, made.family, made.prediction_type, made.sampler)
        numbers = (made.resolution, made.guidance, made.steps, made.rank, made.training_alpha, made.trained_steps)
        right = all(isinstance(x, str) for x in texts) and all(isinstance(x, int | float) for x in numbers)
        right = right and isinstance(made.zero_terminal_snr, bool)
        return made if right and all(isinstance(x, str | None) for x in (made.base_revision, made.trigger)) else None


def header(
    contract: Contract,
    title: str,
    architecture: str,
    kohya_version: str,
    licence: str | None = None,
    lycoris: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """ModelSpec 1.0.1, the `ss_*` keys that readers look at, trigger words, and the contract. No dates, hosts or paths.

    `lycoris` are LyCORIS's arguments, where the keys are its own.
    """
    side = f"{contract.resolution}x{contract.resolution}"
    facts = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": side,
        "modelspec.prediction_type": contract.prediction_type.removesuffix("_prediction"),
        "ss_base_model_version": kohya_version,
        "ss_v2": str(kohya_version.startswith("sd_v2")),
        "ss_network_module": "lycoris.kohya" if lycoris else "networks.lora",
        "ss_network_dim": str(contract.rank),
        "ss_network_alpha": str(float(contract.rank)),  # as written: the training alpha is folded in
        "ss_output_name": title,
        "ss_sd_model_name": contract.base,
        "ss_resolution": f"({contract.resolution}, {contract.resolution})",
        "ss_steps": str(contract.trained_steps),
        KEY: json.dumps(asdict(contract), sort_keys=True),
    }
    if lycoris:
        facts["ss_network_args"] = json.dumps(dict(lycoris), sort_keys=True)
    if licence:
        facts["modelspec.license"] = licence  # of the base
    if contract.trigger:
        facts |= {"modelspec.trigger_phrase": contract.trigger, "trained_words": contract.trigger}
    return facts


def for_rank(facts: Mapping[str, str], rank: int) -> dict[str, str]:
    """The facts of a file whose strength is folded in: kohya's fields say alpha = rank."""
    said = {k: v for k, v in (("ss_network_dim", str(rank)), ("ss_network_alpha", str(float(rank)))) if k in facts}
    return {**facts, **said}
