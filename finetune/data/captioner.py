"""Captions by a model: any image-to-text model that transformers opens, over the pictures of a folder, into sidecar files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from finetune import files
from finetune.data import decode
from finetune.data.folder import CAPTIONS, folder_items
from finetune.data.sample import Item, Listing
from finetune.data.tables import METADATA, USUAL
from finetune.errors import AccessError, DataError, plain


@dataclass(frozen=True)
class Captioner:
    """A processor and a model, and what is asked of it; greedy, so that the same picture gets the same words."""

    processor: Any
    model: Any
    prompt: str | None = None  # a question for models that take one
    tokens: int = 60  # new ones, at most

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        inputs = self._inputs(images).to(self.model.device)
        inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        ids = self.model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False, num_beams=1)
        asked = inputs.get("input_ids")
        if asked is not None and ids.shape[1] > asked.shape[1] and torch.equal(ids[:, : asked.shape[1]], asked):
            ids = ids[:, asked.shape[1] :]  # a decoder-only model repeats what it was asked
        return [" ".join(text.split()) for text in self.processor.batch_decode(ids, skip_special_tokens=True)]

    def _inputs(self, images: Sequence[Image.Image]) -> Any:
        if not getattr(self.processor, "chat_template", None):
            words = {"text": [self.prompt] * len(images)} if self.prompt else {}
            return self.processor(images=list(images), return_tensors="pt", **words)
        asked = self.prompt or "Describe this picture in one sentence."
        chats = [[{"role": "user", "content": [{"type": "image", "image": i}, {"type": "text", "text": asked}]}] for i in images]
        return self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
        )


def load_captioner(name: str, prompt: str | None, tokens: int) -> Captioner:
    """A Hub id or a folder. Weights are safetensors alone, and no code of the model's is run.

    Raises:
        AccessError: no such model, or one that transformers knows no image-to-text class for.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    accelerator = torch.accelerator.is_available()
    try:
        processor = AutoProcessor.from_pretrained(name)
        model = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True, dtype=torch.bfloat16 if accelerator else None)
    except (OSError, ValueError, KeyError) as e:
        raise AccessError(
            f"--model {name}: {str(e).splitlines()[0]}", "a model for image-to-text, by its Hub id or folder, with safetensors weights"
        ) from e
    if getattr(processor, "tokenizer", None) is not None:
        processor.tokenizer.padding_side = "left"  # for what generates behind a question
    device = torch.accelerator.current_accelerator() if accelerator else torch.device("cpu")
    return Captioner(processor, model.to(device).eval(), prompt, tokens)


def uncaptioned(folder: Path, overwrite: bool) -> tuple[list[Item], int]:
    """The pictures of a folder that have no caption yet (all, with `overwrite`), and how many have one.

    Raises:
        DataError: no folder, no pictures, or captions that stand in a metadata file.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", "captions are written beside the pictures of a folder")
    if listed := [name for name in METADATA if (folder / name).exists()]:
        raise DataError(f"{folder}: its captions stand in {listed[0]}", "captions are written into files beside pictures; remove it first")
    every = list(folder_items(folder, listing := Listing(), False, USUAL))
    if not every:
        raise DataError(f"{folder}: no pictures{''.join(f'; {n}: {w}' for n, w in list(listing.dropped.items())[:5])}")
    stems: dict[Path, str] = {}
    for item in every:
        other = stems.setdefault((folder / item.name).with_suffix(""), item.name)
        if other != item.name:
            raise DataError(f"{folder}: {other} and {item.name} would share one caption file", "rename one of them")
    todo = [item for item in every if overwrite or _existing(folder, item) is None]
    return todo, len(every) - len(todo)


def _existing(folder: Path, item: Item) -> Path | None:
    """The caption file of a picture, even an empty one: someone may mean it."""
    ends: list[str] = []
    for end in CAPTIONS:
        ends += [end, end.upper()]
    there = [path for end in ends if (path := (folder / item.name).with_suffix(end)).exists()]
    return there[0] if there else None


def caption_folder(
    folder: Path, todo: Sequence[Item], captioner: Captioner, batch: int, prefix: str, overwrite: bool, tick: Callable[[], None]
) -> int:
    """Captions pictures and writes each file at once, so that a run that is broken off goes on where it stopped; returns how many.

    A caption that someone wrote meanwhile is kept, unless told otherwise.
    """
    count = 0
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        images = [decode.decode_picture(item.read(), item.name).image for item in part]
        for item, text in zip(part, captioner(images), strict=True):
            there = _existing(folder, item)
            if there is None or overwrite:
                files.write_text(there or (folder / item.name).with_suffix(".txt"), plain(f"{prefix}{text}") + "\n")
                count += 1
            tick()
    return count
