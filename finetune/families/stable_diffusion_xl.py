"""Stable Diffusion XL base: two CLIP text encoders, a U-Net that is told sizes and crops, a KL autoencoder, a DDPM schedule."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from finetune.families import autoencoder, clip, noise
from finetune.families.components import Components
from finetune.families.source import Source
from finetune.families.words import Words
from finetune.objectives.diffusion import Schedule
from finetune.tensors import to_device

Nets = Mapping[str, nn.Module]  # networks by the names of their parts; the denoiser's is "denoiser"
Text = dict[str, Tensor]  # {"hidden": [77, D1 + D2], "pooled": [P]}
Cond = dict[str, Tensor]  # {"hidden": [B, 77, D1 + D2], "pooled": [B, P], "ids": [B, 6]}


class StableDiffusionXL:
    def __init__(self, source: Source, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.source, self.spec, self.device, self.dtype = source, source.spec, torch.device(device), dtype
        kinds = {
            "vae": (AutoencoderKL, torch.float32),
            "text_encoder": (CLIPTextModel, torch.float32),
            "text_encoder_2": (CLIPTextModelWithProjection, torch.float32),
            "unet": (UNet2DConditionModel, dtype),
        }
        self.parts = Components(source, kinds, self.device)
        tokenizers = {"text_encoder": clip.tokenizer(source), "text_encoder_2": clip.tokenizer(source, "tokenizer_2", "text_encoder_2")}
        self.words = Words(tokenizers)
        self.window = clip.window(source)

    def schedule(self) -> Schedule:
        return noise.ddpm(self.source)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> posterior mean and deviation [B, C, H/f, W/f], in the denoiser's units."""
        return autoencoder.encode(self.parts.load("vae"), pixels)

    def decode(self, latents: Tensor, height: int, width: int) -> Tensor:
        """What the pipeline draws -> pixels [B, 3, height, width] in [-1, 1], fp32 on the CPU."""
        return autoencoder.decode(self.parts.load("vae"), latents)

    def tokens(self, caption: str) -> int:
        """Tokens of a caption without the start and end marks; both encoders read `window - 2`."""
        return len(self.words.ids("text_encoder", caption))

    def text(self, nets: Nets, captions: Sequence[str]) -> list[Text]:
        """Both encoders' hidden states before the last layer, side by side, and the second one's projected summary."""
        hidden = []
        for part in self.spec.text:
            ids = clip.ids(self.words, part, captions, self.window).to(self.device)
            out = nets[part](input_ids=ids, output_hidden_states=True)
            hidden.append(out.hidden_states[-2])
        return [{"hidden": h, "pooled": p} for h, p in zip(torch.cat(hidden, -1), out.text_embeds, strict=True)]

    def idle(self, part: str) -> tuple[str, ...]:
        """Beginnings of the names of weights that a text encoder has and `text` does not use: the first one's last layer."""
        last = int(self.source.config(part)["num_hidden_layers"]) - 1
        return (f"encoder.layers.{last}.", "final_layer_norm.") if part == "text_encoder" else ()

    def unconditional(self, empty: Text) -> Text:
        """What inference puts in the place of a caption: zeros, or the empty caption's where the pipeline's config says so."""
        zeros = self.source.index().get("force_zeros_for_empty_prompt", True)
        return {k: v * 0 for k, v in empty.items()} if zeros else empty  # a product, so that a text encoder in training stays in the graph

    def cond(self, texts: Sequence[Text], crops: Tensor) -> Cond:
        """`crops` [B, 6] are the ids that the U-Net is told: original height and width, top and left, height and width."""
        columns = {k: torch.stack([t[k] for t in texts]) for k in ("hidden", "pooled")} | {"ids": crops}
        return {k: to_device(v, self.device).to(self.dtype) for k, v in columns.items()}

    def predict(self, nets: Any, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The denoiser's output, shaped as `x_t` [B, C, H, W]; `t` is [B] in [0, T)."""
        told = {"text_embeds": cond["pooled"], "time_ids": cond["ids"]}
        out = nets["denoiser"](x_t.to(self.dtype), t, encoder_hidden_states=cond["hidden"], added_cond_kwargs=told, return_dict=False)
        return cast(Tensor, out[0])

    def pipeline(self, denoiser: nn.Module | None = None, sampler: str | None = None) -> Any:
        """The inference pipeline for encoded prompts (`prompt`) and latent output (`decode`): each part keeps its own precision."""
        return StableDiffusionXLPipeline(
            vae=self.parts.load("vae"), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
            unet=denoiser or self.parts.load("unet"), scheduler=self.source.sampler(sampler), add_watermarker=False,
        )  # fmt: skip

    def prompt(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        """The pipeline's arguments for a caption that is encoded already."""
        embeds = {
            "prompt_embeds": text["hidden"],
            "pooled_prompt_embeds": text["pooled"],
            "negative_prompt_embeds": negative["hidden"],
            "negative_pooled_prompt_embeds": negative["pooled"],
        }
        return {k: v[None].to(self.device, self.dtype) for k, v in embeds.items()} | {
            "guidance_scale": guidance,
            "guidance_rescale": self.source.guidance_rescale,
        }

    def inference(self) -> tuple[int, float]:
        """Sampling steps and guidance that suit the base."""
        return 30, self.source.guidance or 5.0

    def notes(self) -> list[str]:
        """What should be said of the base before it is trained."""
        fast = next((w for w in ("turbo", "lightning", "hyper", "lcm") if w in self.source.id.lower()), None)
        if not fast:
            return []
        return [f"note: {self.source.id} is distilled for few steps ({fast}); training undoes that, `--base sdxl` learns better"]

    def labels(self) -> tuple[str, str]:
        """What other tools call this base: ModelSpec's architecture, and kohya's `ss_base_model_version`."""
        return "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"

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
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        return {
            "sample": torch.zeros(1, config["in_channels"], latent, latent, device=device),
            "timestep": torch.zeros(1, dtype=torch.int64, device=device),
            "encoder_hidden_states": torch.zeros(1, self.window, config["cross_attention_dim"], device=device),
            "added_cond_kwargs": {"text_embeds": torch.zeros(1, pooled, device=device), "time_ids": torch.zeros(1, 6, device=device)},
        }
