"""Stable Diffusion XL base: two CLIP text encoders, a U-Net that is told sizes and crops, a KL autoencoder, a DDPM schedule."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from finetune.families import inpainting, noise_schedule
from finetune.families.family import Base, Columns, Cond, Nets, Text, text_rows
from finetune.objectives.diffusion import Schedule
from finetune.tensors import to_device


class StableDiffusionXL:
    """A text is {"hidden": [77, D1 + D2], "pooled": [P]}; the U-Net reads the column "crop" [B, 6] as well: original height and width,
    top and left, height and width."""

    def __init__(self, base: Base) -> None:
        self.base = base

    def schedule(self) -> Schedule:
        return noise_schedule.ddpm(self.base.source)

    def text(self, nets: Nets, captions: Sequence[str]) -> list[Text]:
        """Both encoders' hidden states before the last layer, side by side, and the second one's projected summary."""
        hidden = []
        for part in self.base.source.spec.text:
            out = nets[part](input_ids=self.base.ids(part, captions), output_hidden_states=True)
            hidden.append(out.hidden_states[-2])
        return text_rows(hidden=torch.cat(hidden, -1), pooled=out.text_embeds)

    def condition(self, texts: Sequence[Text], columns: Columns) -> Cond:
        ids = to_device(columns["crop"], self.base.device).to(self.base.dtype)
        return self.base.stacked(texts) | inpainting.condition(self.base, columns) | {"ids": ids}

    def predict(self, nets: Nets, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        added = {"text_embeds": cond["pooled"], "time_ids": cond["ids"]}
        sample = inpainting.unet_input(x_t.to(self.base.dtype), cond)
        out = nets["denoiser"](sample, t, encoder_hidden_states=cond["hidden"], added_cond_kwargs=added, return_dict=False)
        return cast(Tensor, out[0])

    def example(self, side: int, device: str) -> dict[str, Any]:
        config = self.base.source.config("unet")
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added = {"text_embeds": torch.zeros(1, pooled, device=device), "time_ids": torch.zeros(1, 6, device=device)}
        example = noise_schedule.unet_example(self.base.source, side, self.base.windows["text_encoder"], device)
        return example | {"added_cond_kwargs": added}
