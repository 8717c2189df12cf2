"""FLUX.1 dev and schnell: CLIP's summary and T5's hidden states, a transformer on packed 2x2 patches, flow matching."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from finetune.families import autoencoder, clip
from finetune.families.components import Components
from finetune.families.source import Source
from finetune.families.words import Words
from finetune.objectives.flow import ByResolution, Flow
from finetune.tensors import to_device

Nets = Mapping[str, nn.Module]  # networks by the names of their parts; the denoiser's is "denoiser"
Text = dict[str, Tensor]  # {"hidden": [512, D], "pooled": [P]}
Cond = dict[str, Tensor]  # {"hidden": [B, 512, D], "pooled": [B, P], "guidance": [B] where the base embeds it}

PATCH = 2  # latents per token, along a side
# The guidance that dev is told in training. Its answer for 3.5 was distilled from a guided teacher, which real pictures are not;
# kohya's trainer and others settled on 1 too. It is drawn with 3.5 all the same.
TRAINING_GUIDANCE = 1.0


def pack(x: Tensor) -> Tensor:
    """[B, C, H, W] -> tokens [B, H/2 W/2, 4 C]."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), 4 * c)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """[B, H/2 W/2, 4 C] -> [B, C, H, W], of `h` x `w` latents."""
    b, _, c = tokens.shape
    return tokens.view(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, h, w)


def positions(h: int, w: int, device: torch.device | str) -> Tensor:
    """[H/2 W/2, 3]: 0, row and column of each token."""
    rows, columns = torch.arange(h // 2, device=device), torch.arange(w // 2, device=device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], 1).float()


class Flux:
    def __init__(self, source: Source, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.source, self.spec, self.device, self.dtype = source, source.spec, torch.device(device), dtype
        kinds = {
            "vae": (AutoencoderKL, torch.float32),
            "text_encoder": (CLIPTextModel, torch.float32),
            # T5 overflows in fp16, and takes 19 GB in fp32
            "text_encoder_2": (T5EncoderModel, torch.bfloat16 if dtype == torch.float16 else dtype),
            "transformer": (FluxTransformer2DModel, dtype),
        }
        self.parts = Components(source, kinds, self.device)
        self.guided = bool(source.config("transformer")["guidance_embeds"])
        with source.reading("tokenizer_2") as folder:
            t5 = AutoTokenizer.from_pretrained(folder)
            rows = int(source.config("text_encoder_2")["vocab_size"])
            if not 0.9 * rows < len(t5) <= rows:
                raise ValueError(f"its vocabulary has {len(t5)} entries, the text encoder {rows}")
        self.words = Words({"text_encoder": clip.tokenizer(source), "text_encoder_2": t5})
        self.window = min(512 if self.guided else 256, t5.model_max_length)  # schnell was distilled with 256

    def schedule(self) -> Flow:
        """Straight lines; a shift that depends on the resolution belongs to sampling, a fixed one to training too."""
        config = self.source.config("scheduler")
        if not config.get("use_dynamic_shifting"):
            return Flow(float(config.get("shift", 1.0)))
        return Flow(
            1.0,
            ByResolution(
                config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096), config.get("base_shift", 0.5),
                config.get("max_shift", 1.15), PATCH,
            ),
        )  # fmt: skip

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> posterior mean and deviation [B, C, H/f, W/f], in the denoiser's units."""
        return autoencoder.encode(self.parts.load("vae"), pixels)

    def decode(self, latents: Tensor, height: int, width: int) -> Tensor:
        """The pipeline's packed tokens -> pixels [B, 3, height, width] in [-1, 1], fp32 on the CPU."""
        factor = autoencoder.factor(self.source)
        return autoencoder.decode(self.parts.load("vae"), unpack(latents, height // factor, width // factor))

    def tokens(self, caption: str) -> int:
        """T5's tokens of a caption; it reads `window - 2` and its end mark at least. CLIP's summary reads 77."""
        return len(self.words.ids("text_encoder_2", caption))

    def text(self, nets: Nets, captions: Sequence[str]) -> list[Text]:
        """T5's last hidden states, padded to the window as in inference, and CLIP's pooled summary."""
        summary = clip.ids(self.words, "text_encoder", captions, clip.window(self.source)).to(self.device)
        words = clip.ids(self.words, "text_encoder_2", captions, self.window).to(self.device)
        pooled = nets["text_encoder"](input_ids=summary).pooler_output
        with torch.autocast(self.device.type, enabled=False):  # T5 overflows in fp16
            hidden = nets["text_encoder_2"](words)[0]
        return [{"hidden": h, "pooled": p} for h, p in zip(hidden, pooled, strict=True)]

    def idle(self, part: str) -> tuple[str, ...]:
        """Beginnings of the names of weights that a text encoder has and `text` does not use."""
        return ()

    def unconditional(self, empty: Text) -> Text:
        """The empty caption's. These bases are drawn without a second, unconditional call."""
        return empty

    def cond(self, texts: Sequence[Text], crops: Tensor) -> Cond:
        cond = {k: to_device(torch.stack([t[k] for t in texts]), self.device).to(self.dtype) for k in ("hidden", "pooled")}
        return cond | ({"guidance": torch.full((len(texts),), TRAINING_GUIDANCE, device=self.device)} if self.guided else {})

    def predict(self, nets: Any, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The denoiser's velocity, shaped as `x_t` [B, C, H, W]; `t` is sigma [B] in [0, 1]."""
        h, w = x_t.shape[-2:]
        out = nets["denoiser"](
            hidden_states=pack(x_t).to(self.dtype), timestep=t.to(self.dtype), guidance=cond.get("guidance"),
            encoder_hidden_states=cond["hidden"], pooled_projections=cond["pooled"],
            txt_ids=torch.zeros(cond["hidden"].shape[1], 3, device=x_t.device, dtype=self.dtype),
            img_ids=positions(h, w, x_t.device).to(self.dtype), return_dict=False,
        )  # fmt: skip
        return unpack(cast(Tensor, out[0]), h, w)

    def pipeline(self, denoiser: nn.Module | None = None, sampler: str | None = None) -> Any:
        """The inference pipeline for encoded prompts (`prompt`) and latent output (`decode`): each part keeps its own precision."""
        return FluxPipeline(
            vae=self.parts.load("vae"), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
            transformer=denoiser or self.parts.load("transformer"), scheduler=self.source.sampler(sampler),
        )  # fmt: skip

    def prompt(self, text: Text, negative: Text, guidance: float) -> dict[str, Any]:
        """The pipeline's arguments for a caption that is encoded already; `negative` has no place in a distilled base."""
        embeds = {"prompt_embeds": text["hidden"], "pooled_prompt_embeds": text["pooled"]}
        return {k: v[None].to(self.device, self.dtype) for k, v in embeds.items()} | {"guidance_scale": guidance}

    def inference(self) -> tuple[int, float]:
        """Sampling steps and guidance that suit the base."""
        return (28, self.source.guidance or 3.5) if self.guided else (4, 0.0)

    def notes(self) -> list[str]:
        """What should be said of the base before it is trained."""
        if self.guided:
            return []
        return [f"note: {self.source.id} is distilled for four steps; training undoes that, `--base flux-dev` learns better"]

    def labels(self) -> tuple[str, str]:
        """What other tools call this base: ModelSpec's architecture, and kohya's `ss_base_model_version`."""
        return "flux-1-dev" if self.guided else "flux-1-schnell", "flux1"

    @property
    def factor(self) -> int:
        """Pixels per token, along a side."""
        return PATCH * autoencoder.factor(self.source)

    @property
    def resolution(self) -> int:
        """The side in pixels that the base was trained for."""
        return 1024

    def example(self, side: int, device: str = "meta") -> dict[str, Any]:
        """Arguments of one denoiser call at `side` pixels, for counting."""
        config, latent = self.source.config("transformer"), side // autoencoder.factor(self.source)
        return {
            "hidden_states": torch.zeros(1, (latent // PATCH) ** 2, config["in_channels"], device=device),
            "timestep": torch.zeros(1, device=device),
            "guidance": torch.zeros(1, device=device) if self.guided else None,
            "encoder_hidden_states": torch.zeros(1, self.window, config["joint_attention_dim"], device=device),
            "pooled_projections": torch.zeros(1, config["pooled_projection_dim"], device=device),
            "txt_ids": torch.zeros(self.window, 3, device=device),
            "img_ids": positions(latent, latent, device),
        }
