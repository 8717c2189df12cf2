"""Stable Diffusion 3 and 3.5: two CLIP text encoders and T5, a transformer of two streams, flow matching with a fixed shift."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from finetune.families.family import Base, Columns, Cond, Nets, Text, text_rows
from finetune.families.spec import pixels_per_latent
from finetune.objectives.flow import Flow

TIMESTEPS = 1000  # the transformer is told sigma as one of so many
T5 = "text_encoder_3"


class StableDiffusion3:
    """A text is {"hidden": [77 + 256, D], "pooled": [P]}: CLIP's rows, filled up with zeros to T5's width, above T5's."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.width = int(base.source.config("transformer")["joint_attention_dim"])
        self.pixels = pixels_per_latent(base.source)

    def schedule(self) -> Flow:
        return Flow(float(self.base.source.config("scheduler").get("shift", 1.0)))

    def text(self, nets: Nets, captions: Sequence[str]) -> list[Text]:
        """CLIP's hidden states before the last layer side by side, T5's last ones below them, and CLIP's summaries side by side."""
        hidden, pooled = [], []
        for part in self.base.source.spec.text:
            if part != T5:
                out = nets[part](input_ids=self.base.ids(part, captions), output_hidden_states=True)
                hidden.append(out.hidden_states[-2])
                pooled.append(out.text_embeds)
        clip = torch.cat(hidden, -1)
        rows = torch.cat([pad(clip, (0, self.width - clip.shape[-1])), self._t5(nets, captions)], 1)
        return text_rows(hidden=rows, pooled=torch.cat(pooled, -1))

    def _t5(self, nets: Nets, captions: Sequence[str]) -> Tensor:
        """Zeros where the base has none, as in inference."""
        if T5 not in self.base.source.spec.text:
            return torch.zeros(len(captions), self.base.edition.windows[T5], self.width, device=self.base.device)
        with torch.autocast(self.base.device.type, enabled=False):  # T5 overflows in fp16
            return cast(Tensor, nets[T5](self.base.ids(T5, captions))[0])

    def condition(self, texts: Sequence[Text], columns: Columns) -> Cond:
        return self.base.stacked(texts)

    def predict(self, nets: Nets, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The velocity; `t` is sigma [B] in [0, 1]."""
        out = nets["denoiser"](
            hidden_states=x_t.to(self.base.dtype),
            timestep=t * TIMESTEPS,
            encoder_hidden_states=cond["hidden"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )
        return cast(Tensor, out[0])

    def example(self, side: int, device: str) -> dict[str, Any]:
        config, latent = self.base.source.config("transformer"), side // self.pixels
        windows = {**self.base.edition.windows, **self.base.windows}
        tokens = windows["text_encoder"] + windows[T5]
        return {
            "hidden_states": torch.zeros(1, config["in_channels"], latent, latent, device=device),
            "timestep": torch.zeros(1, device=device),
            "encoder_hidden_states": torch.zeros(1, tokens, self.width, device=device),
            "pooled_projections": torch.zeros(1, config["pooled_projection_dim"], device=device),
        }
