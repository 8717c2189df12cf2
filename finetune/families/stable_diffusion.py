"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net, a KL autoencoder, a DDPM schedule."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from finetune.families import inpainting, noise_schedule
from finetune.families.family import Base, Columns, Cond, Nets, Text, text_rows
from finetune.objectives.diffusion import Schedule


class StableDiffusion:
    """A text is {"hidden": [77, D]}."""

    def __init__(self, base: Base) -> None:
        self.base = base

    def schedule(self) -> Schedule:
        return noise_schedule.ddpm(self.base.source)

    def text(self, nets: Nets, captions: Sequence[str]) -> list[Text]:
        """The encoder's last hidden states, padded to the window as in inference."""
        return text_rows(hidden=nets["text_encoder"](input_ids=self.base.ids("text_encoder", captions)).last_hidden_state)

    def condition(self, texts: Sequence[Text], columns: Columns) -> Cond:
        return self.base.stacked(texts) | inpainting.condition(self.base, columns)

    def predict(self, nets: Nets, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        sample = inpainting.unet_input(x_t.to(self.base.dtype), cond)
        out = nets["denoiser"](sample, t, encoder_hidden_states=cond["hidden"], return_dict=False)
        return cast(Tensor, out[0])

    def example(self, side: int, device: str) -> dict[str, Any]:
        return noise_schedule.unet_example(self.base.source, side, self.base.windows["text_encoder"], device)
