"""The embedded CLIP, trained apart from the denoiser's training: how well pictures follow prompts."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from finetune.bases import TINY
from finetune.data import crop


class Clip:
    """Text and picture features of length 1."""

    def __init__(self) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.model: Any = CLIPModel.from_pretrained(TINY / "clip", dtype=torch.float32).eval()
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(TINY / "tokenizer")

    @torch.no_grad()
    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size -> [N, D]."""
        side = self.model.config.vision_config.image_size
        pixels = torch.stack([crop.to_tensor(crop.square(i.convert("RGB"), side)) for i in images])
        return _unit(self.model.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """[N, D]."""
        window = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(list(captions), padding="max_length", truncation=True, max_length=window, return_tensors="pt")
        return _unit(self.model.get_text_features(input_ids=ids["input_ids"]))

    def follows(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        """Cosine of each picture with its caption, [N]."""
        return (self.pictures(images) * self.texts(captions)).sum(1)


def _unit(out: Any) -> Tensor:
    features: Tensor = out if isinstance(out, Tensor) else out.pooler_output  # transformers 5 returns the projection as this
    return torch.nn.functional.normalize(features, dim=1)
