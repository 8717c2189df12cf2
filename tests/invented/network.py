"""Quill's network: the five functions in which families differ."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from finetune.families.family import Base, Columns, Cond, Nets, Text, text_rows
from finetune.families.spec import pixels_per_latent
from finetune.objectives.flow import Flow

TIMESTEPS = 1000  # the network is told sigma as one of so many


class Quill:
    """A text is {"hidden": [16, D]}; the transformer reads the column "crop" [B, 6] as well, as original, corner and target."""

    def __init__(self, base: Base) -> None:
        """Nothing is loaded: `base` has the files, the tokenizers, the device and the number format."""
        self.base = base

    def schedule(self) -> Flow:
        """The training noise, from the base's own config."""
        return Flow(float(self.base.source.config("scheduler").get("shift", 1.0)))

    def text(self, nets: Nets, captions: Sequence[str]) -> list[Text]:
        """What depends on a caption alone; it is kept in the cache, so it must not depend on its neighbours."""
        out = nets["text_encoder"](self.base.ids("text_encoder", captions), output_hidden_states=True)
        return text_rows(hidden=out.hidden_states[-2])

    def condition(self, texts: Sequence[Text], columns: Columns) -> Cond:
        """A batch of texts, with what else the denoiser is told."""
        crop = columns["crop"].to(self.base.device, self.base.dtype)
        return self.base.stacked(texts) | {"original": crop[:, :2], "corner": crop[:, 2:4], "target": crop[:, 4:]}

    def predict(self, nets: Nets, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The velocity noise - x_0, shaped as `x_t` [B, C, H, W]; `t` is sigma [B] in [0, 1]."""
        out = nets["denoiser"](
            hidden_states=x_t.to(self.base.dtype), encoder_hidden_states=cond["hidden"], timestep=t * TIMESTEPS,
            original_size=cond["original"], target_size=cond["target"], crop_coords=cond["corner"], return_dict=False,
        )  # fmt: skip
        return cast(Tensor, out[0])

    def example(self, side: int, device: str) -> dict[str, Any]:
        """Arguments of one denoiser call on one picture of `side` pixels, for counting without weights."""
        config, latent = self.base.source.config("transformer"), side // pixels_per_latent(self.base.source)
        sizes = {name: torch.zeros(1, 2, device=device) for name in ("original_size", "target_size", "crop_coords")}
        return {
            "hidden_states": torch.zeros(1, config["in_channels"], latent, latent, device=device),
            "encoder_hidden_states": torch.zeros(1, self.base.windows["text_encoder"], config["text_embed_dim"], device=device),
            "timestep": torch.zeros(1, device=device),
            **sizes,
        }
