"""What a file's header says: how the adapter must be used, and what other tools look for."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from finetune.errors import line
from finetune.text import from_json

KEY = "ft.contract"
MOST = 10**9  # of any number: beyond it, and for infinity and nan, the contract is damaged and counts as none


@dataclass(frozen=True)
class Contract:
    """How the adapter must be used: what `ft generate` honours and refuses to contradict."""

    base: str  # short name, Hub id or folder name; never a path
    base_revision: str | None
    base_sha256: str  # of the denoiser the adapter was trained on; of a decoder, the autoencoder that it was one of
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
    adapter: str | None = "lora"  # its type; None in embeddings and whole models (older ones say lora there, too)
    zero_terminal_snr: bool = False  # the base's schedule is to be rescaled so that it ends in pure noise
    timestep_spacing: str | None = None  # of sampling then: for other readers, as `ft generate` knows both
    guidance_rescale: float = 0.0

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "Contract | None":
        """The one in a file's header, or None for a file of another tool. Each of its texts but the trigger is one line."""
        try:
            values: dict[str, Any] = from_json(metadata[KEY])
            texts = {k: line(v) for k, v in values.items() if isinstance(v, str) and k != "trigger"}
            contract = cls(**values | texts)
        except (KeyError, ValueError, TypeError, AttributeError):
            return None
        names = (contract.base, contract.base_sha256, contract.family, contract.prediction_type, contract.sampler)
        numbers = (contract.resolution, contract.guidance, contract.steps, contract.rank, contract.training_alpha, contract.trained_steps)
        right = all(isinstance(x, str) for x in names) and all(isinstance(x, int | float) and abs(x) <= MOST for x in numbers)
        right = right and isinstance(contract.zero_terminal_snr, bool)
        return (
            contract
            if right and all(isinstance(x, str | None) for x in (contract.base_revision, contract.trigger, contract.adapter))
            else None
        )


@dataclass(frozen=True)
class Labels:
    """What other tools call a base."""

    architecture: str  # ModelSpec's
    kohya_version: str  # `ss_base_model_version`
    codes: Mapping[str, str]  # ModelSpec's `implementation`, whose code the weights are named as in, by kind of file
    v2: bool = False  # kohya's `ss_v2`


def model_of(metadata: Mapping[str, str]) -> str:
    """ModelSpec's name of the model that a file is of."""
    return metadata.get("modelspec.architecture", "").partition("/")[0]


Kind = Literal["adapter", "embedding", "model", "decoder"]
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}  # diffusers' word -> ModelSpec's, which has none for flow
SUFFIXES: dict[Kind, str] = {"adapter": "/lora", "embedding": "/textual-inversion", "model": "", "decoder": "/vae"}


def file_metadata(
    kind: Kind,
    contract: Contract,
    title: str,
    labels: Labels,
    licence: str | None = None,
    lycoris: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """ModelSpec 1.0.1, the `ss_*` keys that readers look at, trigger words, and the contract. No dates, hosts or paths.

    `lycoris` are LyCORIS's arguments, where the keys are its own. The hash is for whoever writes the file.
    """
    side = f"{contract.resolution}x{contract.resolution}"
    if kind != "adapter":
        contract = replace(contract, adapter=None, rank=0, training_alpha=0.0)
    facts = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": labels.architecture + SUFFIXES[kind],
        "modelspec.implementation": labels.codes["model" if kind == "decoder" else kind],
        "modelspec.title": title,
        "modelspec.resolution": side,
        "ss_base_model_version": labels.kohya_version,
        "ss_v2": str(labels.v2),
        "ss_output_name": title,
        "ss_sd_model_name": contract.base,
        "ss_resolution": f"({contract.resolution}, {contract.resolution})",
        "ss_steps": str(contract.trained_steps),
        KEY: json.dumps(asdict(contract), sort_keys=True),
    }
    if contract.prediction_type in PREDICTIONS:
        facts["modelspec.prediction_type"] = PREDICTIONS[contract.prediction_type]
    if kind == "adapter":
        facts |= _network(contract, lycoris)
    if licence:
        facts["modelspec.license"] = licence  # of the base
    if contract.trigger:
        facts |= {"modelspec.trigger_phrase": contract.trigger, "trained_words": contract.trigger}
    return facts


def _network(contract: Contract, lycoris: Mapping[str, str] | None) -> dict[str, str]:
    facts = {
        "ss_network_module": "lycoris.kohya" if lycoris else "networks.lora",
        "ss_network_dim": str(contract.rank),
        "ss_network_alpha": str(float(contract.rank)),  # as written: the training alpha is folded in
    }
    return facts | ({"ss_network_args": json.dumps(dict(lycoris), sort_keys=True)} if lycoris else {})


TAGS = "ss_tag_frequency"


def of_data(pictures: int, tags: Mapping[str, int] | None) -> dict[str, str]:
    """What a header says of the data: how many pictures an epoch shows; how often they say a tag, where that may be known.

    The tools that read the tags expect them by folder, whose names are nobody's business: all stand under one.
    """
    facts = {"ss_num_train_images": str(pictures)}
    if tags is not None:
        facts[TAGS] = json.dumps({"pictures": dict(tags)}, sort_keys=True)
    return facts


def for_rank(facts: Mapping[str, str], rank: int) -> dict[str, str]:
    """The facts of a file whose strength is folded in: kohya's fields say alpha = rank."""
    keys = {k: v for k, v in (("ss_network_dim", str(rank)), ("ss_network_alpha", str(float(rank)))) if k in facts}
    return {**facts, **keys}
