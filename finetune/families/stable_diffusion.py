"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net, a KL autoencoder, a DDPM schedule."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from finetune.families import autoencoder, clip, noise
from finetune.families.components import Components
from finetune.families.source import Source
from finetune.families.words import Words
from finetune.objectives.diffusion import Schedule
from finetune.tensors import to_device

Nets = Mapping[str, nn.Module]  # networks by the names of their parts; the denoiser's is "denoiser"
Text = dict[str, Tensor]  # what depends on the caption alone: {"hidden": [77, D]}
Cond = dict[str, Tensor]  # a batch of it: {"hidden": [B, 77, D]}


class StableDiffusion:
    def __init__(self, source: Source, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.source, self.spec, self.device, self.dtype = source, source.spec, torch.device(device), dtype
        kinds = {
            "vae": (AutoencoderKL, torch.float32),
            "text_encoder": (CLIPTextModel, torch.float32),
            "unet": (UNet2DConditionModel, dtype),
        }
        self.parts = Components(source, kinds, self.device)
        self.words, self.window = Words({"text_encoder": clip.tokenizer(source)}), clip.window(source)

    def schedule(self) -> Schedule:
        return noise.ddpm(self.source)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> posterior mean and deviation [B, C, H/f, W/f], in the denoiser's units."""
        return autoencoder.encode(self.parts.load("vae"), pixels)

    def decode(self, latents: Tensor, height: int, width: int) -> Tensor:
        """What the pipeline draws -> pixels [B, 3, height, width] in [-1, 1], fp32 on the CPU."""
        return autoencoder.decode(self.parts.load("vae"), latents)

    def tokens(self, caption: str) -> int:
        """Tokens of a caption without the start and end marks; the encoder reads `window - 2`."""
        return len(self.words.ids("text_encoder", caption))

    def text(self, nets: Nets, captions: Sequence[str]) -> list[Text]:
        """The encoder's last hidden states, padded to the window as in inference."""
        ids = clip.ids(self.words, "text_encoder", captions, self.window)
        return [{"hidden": h} for h in nets["text_encoder"](input_ids=ids.to(self.device)).last_hidden_state]

    def idle(self, part: str) -> tuple[str, ...]:
        """Beginnings of the names of weights that a text encoder has and `text` does not use."""
        return ()

    def unconditional(self, empty: Text) -> Text:
        """What inference puts in the place of a caption, from what `text` makes of the empty one: just that."""
        return empty

    def cond(self, texts: Sequence[Text], crops: Tensor) -> Cond:
        return {"hidden": to_device(torch.stack([t["hidden"] for t in texts]), self.device).to(self.dtype)}

    def predict(self, nets: Any, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The denoiser's output, shaped as `x_t` [B, C, H, W]; `t` is [B] in [0, T)."""
        return cast(Tensor, nets["denoiser"](x_t.to(self.dtype), t, encoder_hidden_states=cond["hidden"], return_dict=False)[0])

    def pipeline(self, denoiser: nn.Module | None = None, sampler: str | None = None) -> Any:
        """The inference pipeline for encoded prompts (`prompt`) and latent output (`decode`): each part keeps its own precision."""
        return StableDiffusionPipeline(
            vae=self.parts.load("vae"), text_encoder=None, tokenizer=None, unet=denoiser or self.parts.load("unet"),
            scheduler=self.source.sampler(sampler), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip

    def prompt(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        """The pipeline's arguments for a caption that is encoded already."""
        embeds = {"prompt_embeds": text["hidden"], "negative_prompt_embeds": negative["hidden"]}
        return {k: v[None].to(self.device, self.dtype) for k, v in embeds.items()} | {
            "guidance_scale": guidance,
            "guidance_rescale": self.source.guidance_rescale,
        }

    def inference(self) -> tuple[int, float]:
        """Sampling steps and guidance that suit the base."""
        return 30, self.source.guidance or 7.5

    def notes(self) -> list[str]:
        """What should be said of the base before it is trained."""
        return []

    def labels(self) -> tuple[str, str]:
        """What other tools call this base: ModelSpec's architecture, and kohya's `ss_base_model_version`."""
        v = self.schedule().prediction_type == "v_prediction"
        if self.source.config("text_encoder")["hidden_size"] == 1024:
            return ("stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512"), "sd_v2" + ("_v" if v else "")
        return "stable-diffusion-v1", "sd_v1" + ("_v" if v else "")

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return autoencoder.factor(self.source)

    @property
    def resolution(self) -> int:
        """The side in pixels that the base was trained for."""
        return int(self.source.config("unet")["sample_size"]) * self.factor

    def example(self, side: int, device: str = "meta") -> dict[str, Any]:
        """Arguments of one denoiser call at `side` pixels, for counting."""
        config, latent = self.source.config("unet"), side // self.factor
        return {
            "sample": torch.zeros(1, config["in_channels"], latent, latent, device=device),
            "timestep": torch.zeros(1, dtype=torch.int64, device=device),
            "encoder_hidden_states": torch.zeros(1, self.window, config["cross_attention_dim"], device=device),
        }
