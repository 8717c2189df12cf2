"""The embedded judge: a small ResNet, trained apart from the base, that names an emoji and its style and measures similarity."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from finetune.bases import TINY
from finetune.data import crop


class Judge:
    """`names` and `styles` it knows; `features` for cosine similarity; `name` and `style` log-odds."""

    def __init__(self) -> None:
        from transformers import ResNetForImageClassification

        self.model: Any = ResNetForImageClassification.from_pretrained(TINY / "judge", dtype=torch.float32).eval()
        labels = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        self.styles = [label.removesuffix(" style") for label in labels if label.endswith(" style")]
        self.names = labels[: -len(self.styles)]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor, Tensor]:
        """RGB pictures of any size -> features [N, D] of length 1, name logits [N, names], style logits [N, styles]."""
        pixels = torch.stack([crop.to_tensor(crop.square(i.convert("RGB"), 64)) for i in images])
        pooled = self.model.resnet(pixels).pooler_output.flatten(1)
        logits = self.model.classifier(pooled)
        return torch.nn.functional.normalize(pooled, dim=1), logits[:, : len(self.names)], logits[:, len(self.names) :]

    def style(self, images: Sequence[Image.Image], style: str) -> Tensor:
        """Log-odds of one style, [N]: unlike a probability, they still tell pictures apart where the judge is sure."""
        p = self(images)[2].double().softmax(1)[:, self.styles.index(style)]
        return torch.logit(p)


def among_top(logits: Tensor, right: Sequence[int], top: int) -> float:
    """Share of rows whose right column is among the `top` highest."""
    best = logits.topk(top, dim=1).indices
    return float((best == torch.tensor(right)[:, None]).any(1).float().mean())
