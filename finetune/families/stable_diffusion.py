"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net, a KL autoencoder, a DDPM schedule."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.data.encoded import to_device
from finetune.families.source import Source
from finetune.objectives.diffusion import Schedule

Text = dict[str, Tensor]  # what depends on the caption alone: {"hidden": [77, D]}
Cond = dict[str, Tensor]  # a batch of it: {"hidden": [B, 77, D]}

COMPONENTS = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "unet": UNet2DConditionModel}


class StableDiffusion:
    """A base's components, each loaded when a phase needs it and freed after."""

    def __init__(self, source: Source, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.source, self.spec, self.device, self.dtype = source, source.spec, torch.device(device), dtype
        self.components: dict[str, nn.Module] = {}
        with source.reading("tokenizer"):
            self.tokenizer = CLIPTokenizer.from_pretrained(source.folder / "tokenizer")
            # Without its vocabulary file the class loads all the same, with two entries, and every caption reads alike.
            rows = int(source.config("text_encoder")["vocab_size"])
            if not 0.9 * rows < len(self.tokenizer) <= rows:
                raise ValueError(f"its vocabulary has {len(self.tokenizer)} entries, the text encoder {rows}")

    def load(self, name: str) -> nn.Module:
        """A frozen component. Encoders run in fp32 (a half-precision autoencoder turns black); the denoiser in `dtype`.

        Raises:
            AccessError: its weights are missing or damaged.
        """
        if name not in self.components:
            dtype = self.dtype if name == self.spec.denoiser else torch.float32
            with self.source.reading(name):
                module = COMPONENTS[name].from_pretrained(
                    self.source.folder / name, variant=self.source.variant, use_safetensors=True, dtype=dtype
                )
            self.components[name] = cast(nn.Module, module.to(self.device).requires_grad_(False).eval())
        return self.components[name]

    def free(self, name: str) -> None:
        self.components.pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def fingerprint(self, name: str) -> str:
        """sha256 over a component's files: weights and config, for the text encoder also its tokenizer's."""
        return self.source.fingerprint(*((name, "tokenizer") if name == "text_encoder" else (name,)))

    def schedule(self) -> Schedule:
        """The training noise of the model's own config, built as DDPM (an Euler scheduler's noise is another parametrisation)."""
        ddpm = DDPMScheduler.from_config(self.source.config("scheduler"))
        return Schedule(ddpm.alphas_cumprod, ddpm.config.prediction_type)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> posterior mean and deviation [B, C, H/f, W/f], in the denoiser's units."""
        vae: Any = self.load("vae")
        posterior = vae.encode(pixels.to(self.device, torch.float32)).latent_dist
        scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
        return (posterior.mean - shift) * scale, posterior.std * scale

    @property
    def window(self) -> int:
        """Tokens the text encoder reads, start and end included."""
        return int(self.source.config("text_encoder")["max_position_embeddings"])

    def tokens(self, caption: str) -> int:
        """Tokens of a caption without the start and end marks; the encoder reads `window - 2`."""
        return len(self.tokenizer(caption, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def text(self, captions: Sequence[str]) -> list[Text]:
        """The encoder's last hidden states, padded to the window as in inference."""
        encoder = self.load("text_encoder")
        ids = self.tokenizer(list(captions), padding="max_length", truncation=True, max_length=self.window, return_tensors="pt")[
            "input_ids"
        ]
        return [{"hidden": h} for h in encoder(input_ids=ids.to(self.device)).last_hidden_state.cpu()]

    def unconditional(self) -> Text:
        """What inference puts in the place of a caption: the empty one."""
        return self.text([""])[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, H/f, W/f] in the denoiser's units -> pixels [B, 3, H, W] in [-1, 1], fp32 on the CPU."""
        vae: Any = self.load("vae")
        scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
        with torch.autocast(self.device.type, enabled=False):
            return cast(Tensor, vae.decode(latents.to(self.device, torch.float32) / scale + shift).sample.clamp(-1, 1).cpu())

    def cond(self, texts: Sequence[Text]) -> Cond:
        return {"hidden": to_device(torch.stack([t["hidden"] for t in texts]), self.device).to(self.dtype)}

    def predict(self, nets: Any, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The denoiser's output, shaped as `x_t` [B, C, H, W]; `t` is [B] in [0, T)."""
        return cast(Tensor, nets["denoiser"](x_t.to(self.dtype), t, encoder_hidden_states=cond["hidden"], return_dict=False)[0])

    def pipeline(self, denoiser: nn.Module | None = None, sampler: str | None = None) -> Any:
        """The inference pipeline for encoded prompts (`prompt`) and latent output (`decode`): each part keeps its own precision."""
        import diffusers

        scheduler = getattr(diffusers, self.spec.samplers[sampler or self.spec.sampler])
        return StableDiffusionPipeline(
            vae=self.load("vae"),
            text_encoder=None,
            tokenizer=None,
            unet=denoiser or self.load("unet"),
            scheduler=scheduler.from_config(self.source.config("scheduler")),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def prompt(self, text: Text, negative: Text) -> dict[str, Tensor]:
        """The pipeline's arguments for a caption that is encoded already."""
        embeds = {"prompt_embeds": text, "negative_prompt_embeds": negative}
        return {k: self.cond([v])["hidden"] for k, v in embeds.items()}

    def labels(self) -> tuple[str, str]:
        """What other tools call this base: ModelSpec's architecture, and kohya's `ss_base_model_version`."""
        v = self.schedule().prediction_type == "v_prediction"
        if self.source.config("text_encoder")["hidden_size"] == 1024:
            return ("stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512"), "sd_v2" + ("_v" if v else "")
        return "stable-diffusion-v1", "sd_v1" + ("_v" if v else "")

    def skeleton(self) -> nn.Module:
        """The denoiser without weights, on the meta device: for counting."""
        with torch.device("meta"):
            return cast(nn.Module, UNet2DConditionModel.from_config(self.source.config("unet")))

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return int(2 ** (len(self.source.config("vae")["block_out_channels"]) - 1))

    @property
    def resolution(self) -> int:
        """The side in pixels that the base was trained for."""
        return int(self.source.config("unet")["sample_size"]) * self.factor

    def example(self, side: int, device: str = "meta") -> dict[str, Tensor]:
        """Arguments of one denoiser call at `side` pixels, for counting."""
        config, latent = self.source.config("unet"), side // self.factor
        return {
            "sample": torch.zeros(1, config["in_channels"], latent, latent, device=device),
            "timestep": torch.zeros(1, dtype=torch.int64, device=device),
            "encoder_hidden_states": torch.zeros(1, self.window, config["cross_attention_dim"], device=device),
        }
