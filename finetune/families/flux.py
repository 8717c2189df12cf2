"""FLUX.1 dev and schnell: CLIP's summary and T5's hidden states, a transformer on packed 2x2 patches, flow matching."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from finetune.families.family import Base, Columns, Cond, Nets, Text, text_rows
from finetune.families.patches import pack, positions, unpack
from finetune.families.spec import pixels_per_latent
from finetune.objectives.flow import ByResolution, Flow

# The guidance that dev is told in training. Its answer for 3.5 was distilled from a guided teacher, which real pictures are not;
# kohya's trainer and others settled on 1 too. It is drawn with 3.5 all the same.
TRAINING_GUIDANCE = 1.0


class Flux:
    """A text is {"hidden": [512, D], "pooled": [P]}; dev's denoiser is told a guidance as well."""

    def __init__(self, base: Base) -> None:
        self.base, self.guided = base, bool(base.source.config("transformer")["guidance_embeds"])

    def schedule(self) -> Flow:
        """Straight lines; a shift that depends on the resolution belongs to sampling, a fixed one to training too."""
        config = self.base.source.config("scheduler")
        if not config.get("use_dynamic_shifting"):
            return Flow(float(config.get("shift", 1.0)))
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        shifts = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return Flow(1.0, ByResolution(few, many, *shifts, self.base.source.spec.patch))

    def text(self, nets: Nets, captions: Sequence[str]) -> list[Text]:
        """T5's last hidden states, padded to the window as in inference, and CLIP's pooled summary."""
        pooled = nets["text_encoder"](input_ids=self.base.ids("text_encoder", captions)).pooler_output
        with torch.autocast(self.base.device.type, enabled=False):  # T5 overflows in fp16
            hidden = nets["text_encoder_2"](self.base.ids("text_encoder_2", captions))[0]
        return text_rows(hidden=hidden, pooled=pooled)

    def condition(self, texts: Sequence[Text], columns: Columns) -> Cond:
        cond = self.base.stacked(texts)
        return cond | self._guidance(len(texts), self.base.device)

    def _guidance(self, count: int, device: torch.device | str) -> Cond:
        return {"guidance": torch.full((count,), TRAINING_GUIDANCE, device=device)} if self.guided else {}

    def predict(self, nets: Nets, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The denoiser's velocity; `t` is sigma [B] in [0, 1]."""
        dtype, (h, w) = self.base.dtype, x_t.shape[-2:]
        out = nets["denoiser"](
            hidden_states=pack(x_t).to(dtype),
            timestep=t.to(dtype),
            guidance=cond.get("guidance"),
            encoder_hidden_states=cond["hidden"],
            pooled_projections=cond["pooled"],
            txt_ids=torch.zeros(cond["hidden"].shape[1], 3, device=x_t.device, dtype=dtype),
            img_ids=positions(h, w, x_t.device).to(dtype),
            return_dict=False,
        )
        return unpack(cast(Tensor, out[0]), h, w)

    def example(self, side: int, device: str) -> dict[str, Any]:
        config, latent = self.base.source.config("transformer"), side // pixels_per_latent(self.base.source)
        tokens = self.base.windows["text_encoder_2"]
        return {
            "hidden_states": torch.zeros(1, (latent // 2) ** 2, config["in_channels"], device=device),
            "timestep": torch.zeros(1, device=device),
            "guidance": self._guidance(1, device).get("guidance"),
            "encoder_hidden_states": torch.zeros(1, tokens, config["joint_attention_dim"], device=device),
            "pooled_projections": torch.zeros(1, config["pooled_projection_dim"], device=device),
            "txt_ids": torch.zeros(tokens, 3, device=device),
            "img_ids": positions(latent, latent, device),
        }
