"""The embedded base's denoiser, trained with the project's own index plan, keyed noise, objective and checkpoints."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from clip import WINDOW
from data import Emoji, captions, emojis, pixels
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from vae import encode

from finetune import randomness
from finetune.config.optim import Optim
from finetune.data.index_plan import IndexPlan, Slot
from finetune.data.inputs import PICTURE, Input
from finetune.data.sample import Sample
from finetune.methods.trainees import ParameterGroup
from finetune.objectives.diffusion import Diffusion, Schedule
from finetune.objectives.weights import MinSNR
from finetune.results import checkpoint
from finetune.training import optimizer
from finetune.training.schedule import learning_rate

SEED, BATCH, LR, WARMUP = 13, 64, 1e-3, 300
STEPS, COOLDOWN = 10_400, 0.25  # constant rate, then linear to 0 over the last quarter
RATE = Optim(lr=LR, betas=(0.9, 0.99), schedule="wsd", warmup=WARMUP, steps=STEPS, decay=COOLDOWN * STEPS / (STEPS - WARMUP))
DROPOUT, NEW_WORDS, OTHERS, VARIANTS, EMA, SAVE_EVERY = 0.1, 0.25, 0.25, 8, 0.999, 100


def schedule() -> DDPMScheduler:
    """Stable Diffusion's: scaled linear, epsilon, and the samplers' spacing that goes with it."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


def build() -> UNet2DConditionModel:
    with randomness.global_rng(SEED, "unet"):
        unet = UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=(48, 96, 160), layers_per_block=1,
            cross_attention_dim=128, attention_head_dim=(2, 3, 5), norm_num_groups=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    unet.set_attn_processor(AttnProcessor())  # 1.3 to 1.4 times faster than fused attention on a CPU at this size
    return unet.to(memory_format=torch.channels_last)


@torch.no_grad()
def text_table(tokenizer: CLIPTokenizer, clip: CLIPModel, texts: list[str]) -> Tensor:
    """Hidden states [N, 24, 128] of each caption."""
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=WINDOW, return_tensors="pt")["input_ids"]
    return torch.cat([clip.text_model(input_ids=i).last_hidden_state for i in ids.split(256)])


def new_word(*key: int | str) -> str:
    """A word that means nothing, such as "zorbeka": two or three syllables."""
    syllables = range(2 + randomness.number(SEED, "length", *key) % 2)
    pick = [randomness.number(SEED, "syllable", i, *key) for i in syllables]
    return "".join("bdfgklmnprstvz"[n % 14] + "aeiou"[n // 14 % 5] + ("", "", "n", "r", "k")[n // 70 % 5] for n in pick)


def pick_caption(e: Emoji, options: list[tuple[str, float]], step: int, slot: int) -> str:
    """One caption by its probability, the empty one, or one with a word that means nothing: functions of (seed, step, slot).

    Words that mean nothing teach the denoiser to draw what it knows of a caption and to let the rest be: a trigger word or the
    name of a new style then starts from a whole picture, and not from the noise that an unknown word would otherwise bring.
    """
    if randomness.uniform(SEED, "dropout", step, slot) < DROPOUT:
        return ""
    if randomness.uniform(SEED, "new word", step, slot) < NEW_WORDS:
        word = new_word(step, slot)
        name = e.name if e.taught else e.kind
        forms = (f"{name}, {word} style", f"{name}, {word} style", f"{word} {name}", f"{word} {e.kind}")
        return forms[randomness.number(SEED, "form", step, slot) % 4]
    u = randomness.uniform(SEED, "caption", step, slot)
    for caption, p in options:
        u -= p
        if u < 0:
            return caption
    return options[-1][0]


def vary(x: Tensor, g: torch.Generator) -> Tensor:
    """[N, 3, 64, 64] in [-1, 1], each moved, scaled, mirrored, tinted and shaded a little, on a ground that stays white.

    A base that has each picture by heart draws well and learns badly: a LoRA of 24 pictures turned most others into one blob.
    """
    n = len(x)
    scale = 1 + 0.15 * (2 * torch.rand(n, 1, 1, generator=g) - 1)
    mirror = torch.where(torch.rand(n, 1, 1, generator=g) < 0.5, -1.0, 1.0)
    theta = torch.cat([torch.diag_embed(torch.cat([scale[:, 0] * mirror[:, 0], scale[:, 0]], 1)), torch.zeros(n, 2, 1)], 2)
    theta[:, :, 2] = 0.12 * (2 * torch.rand(n, 2, generator=g) - 1)
    ink = 1 - F.grid_sample(x - 1, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False) - 1
    tint = 1 + 0.35 * (2 * torch.rand(n, 3, 1, 1, generator=g) - 1)
    shade = 1 + 0.3 * (2 * F.interpolate(torch.rand(n, 1, 3, 3, generator=g), x.shape[-1], mode="bicubic") - 1)
    return 1 - (ink * tint * shade).clamp(0, 2)


def pick_variant(step: int, slot: int) -> int:
    """The picture itself in half of the draws, else one of its variants."""
    n = randomness.number(SEED, "look", step, slot)
    return 0 if n % 2 else 1 + n // 2 % VARIANTS


class Data:
    """Latents and captions of every taught picture, and of the others under the names of their classes only, encoded once."""

    def __init__(self, node_modules: Path, out: Path) -> None:
        everyone = sorted((e for e in emojis(node_modules) if not e.held_out), key=lambda e: not e.taught)
        drawn: list[tuple[Emoji, str]] = [(e, style) for e in everyone for style in e.pictures]
        self.emoji = [e for e, _ in drawn]
        self.taught = sum(e.taught for e in self.emoji)
        vae = AutoencoderKL.from_pretrained(out / "vae").eval()
        clip, tokenizer = CLIPModel.from_pretrained(out / "clip").eval(), CLIPTokenizer.from_pretrained(out / "tokenizer")
        self.names = [f"{e.unified} {style}" for e, style in drawn[: self.taught]]
        plain = torch.from_numpy(pixels([e.pictures[style] for e, style in drawn]))
        looks = [plain] + [vary(plain, randomness.generator(SEED, "variant", i)) for i in range(VARIANTS)]
        self.latents = torch.stack([encode(vae, look) * vae.config.scaling_factor for look in looks], 1)
        self.options = [captions(e, s) if e.taught else [(f"{e.kind}, {s} style", 0.8), (e.kind, 0.2)] for e, s in drawn]
        texts = sorted({c for o in self.options for c, _ in o} | {""})
        self.row = {t: i for i, t in enumerate(texts)}
        self.encode: Callable[[list[str]], Tensor] = lambda captions: text_table(tokenizer, clip, captions)
        self.texts = self.encode(texts)

    def pick(self, slot: Slot, step: int) -> int:
        """The planned picture, or in a quarter of the draws one of those that are not taught by name."""
        if randomness.uniform(SEED, "other", step, slot.slot) >= OTHERS:
            return slot.sample
        return self.taught + randomness.number(SEED, "which other", step, slot.slot) % (len(self.emoji) - self.taught)

    def batch(self, slots: list[Slot], step: int, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        picked = [self.pick(s, step) for s in slots]
        x_0 = self.latents[picked, [pick_variant(step, s.slot) for s in slots]]
        noise = torch.stack([torch.randn(x_0.shape[1:], generator=randomness.generator(SEED, "noise", step, s.slot)) for s in slots])
        t = torch.tensor([randomness.number(SEED, "timestep", step, s.slot) % steps for s in slots])
        captions = [pick_caption(self.emoji[i], self.options[i], step, s.slot) for i, s in zip(picked, slots, strict=True)]
        text = torch.stack([self.texts[self.row[c]] if c in self.row else self.encode([c])[0] for c in captions])
        return x_0, noise, t, text


def summed(parameters: list[torch.nn.Parameter], loss: Tensor) -> float:
    """Adds up gradients and the loss over processes, each of which has had its share of the batch."""
    if not dist.is_initialized():
        return loss.item()
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in grads), loss.detach()[None]])
    dist.all_reduce(flat)
    for own, total in zip(grads, flat[:-1].split([p.numel() for p in parameters]), strict=True):
        own.copy_(total.view_as(own))
    return flat[-1].item()


def train(node_modules: Path, out: Path) -> None:
    """Also under torchrun: a second process with a core of its own gains more than a second thread."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    data, unet, began = Data(node_modules, out), build(), time.time()
    noise_schedule = Schedule(schedule().alphas_cumprod, "epsilon")
    objective = Diffusion(noise_schedule, MinSNR(5.0))
    plan = IndexPlan([Sample(n, {PICTURE: Input(n)}, (n,)) for n in data.names], BATCH, SEED)
    names, parameters = zip(*unet.named_parameters(), strict=True)
    adamw = optimizer.make(optimizer.torch_groups([ParameterGroup(dict(zip(names, parameters, strict=True)), LR, 0.01)]), RATE, SEED)
    shadow, first = [p.detach().clone() for p in parameters], 0
    for folder in checkpoint.valid(out / "checkpoints"):
        tensors, first = checkpoint.load(folder), checkpoint.facts(folder)["step"]
        unet.load_state_dict({n: tensors[f"model/{n}"] for n in names})
        shadow = [tensors[f"ema/{n}"] for n in names]
        optimizer.restore(adamw, list(names), checkpoint.under(tensors, "optimizer/"))
        break
    say = print if rank == 0 else lambda *words, **how: None
    say(
        f"unet: {sum(p.numel() for p in parameters) / 1e6:.2f} M parameters, {len(data.names)} pictures by name, "
        f"{len(data.emoji) - data.taught} by class, from step {first} of {STEPS}",
        flush=True,
    )
    losses: list[float] = []
    for step in range(first, STEPS):
        optimizer.set_rate(adamw, learning_rate(RATE, step), step / STEPS)
        slots = plan.slots(step)[rank::world]
        x_0, noise, t, text = data.batch(slots, step, noise_schedule.steps)
        weights = torch.tensor([s.weight for s in slots])

        def predict(x_t: Tensor, t: Tensor, text: Tensor = text) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                answer: Tensor = unet(x_t.contiguous(memory_format=torch.channels_last), t, text).sample
                return answer

        noised = objective.mixed(x_0, noise, t)
        error = objective.cost(predict(noised.x_t, noised.t), noised)
        loss = (error.mean((1, 2, 3)) * weights).sum() / plan.total_weight(step)
        loss.backward()
        losses.append(summed(list(parameters), loss))
        optimizer.guard(adamw, torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        adamw.step()
        adamw.zero_grad()
        optimizer.ema_update(shadow, list(parameters), EMA, step)
        if rank:
            continue
        if (step + 1) % 50 == 0:
            print(
                f"unet step {step + 1} loss {sum(losses) / len(losses):.4f} rate {adamw.param_groups[0]['lr']:.2e}",
                f"seconds {time.time() - began:.0f}",
                flush=True,
            )
            losses = []
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS:
            tensors = {f"model/{n}": p for n, p in zip(names, parameters, strict=True)}
            tensors |= {f"ema/{n}": p for n, p in zip(names, shadow, strict=True)}
            tensors |= {f"optimizer/{k}": v for k, v in optimizer.state(adamw, list(names)).items()}
            checkpoint.save(out / "checkpoints", step + 1, tensors, {}, keep=2)
    say("unet done", flush=True)
