"""A run from its job to its files, phase by phase: what is loaded for one phase is freed before the next."""

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import Tensor

from finetune import config, files
from finetune.adapters import file as adapter_file
from finetune.config.job import FREE_SETTINGS, Job
from finetune.data import encoded as data
from finetune.data import folder, keys
from finetune.data.cache import Cache, default_root
from finetune.data.encoded import Encoded
from finetune.data.folder import Found, Sample
from finetune.data.plan import IndexPlan
from finetune.errors import ConfigError, Stopped
from finetune.evaluation import heldout
from finetune.families import load, source
from finetune.families.load import Family
from finetune.methods import adapter
from finetune.objectives.diffusion import Diffusion, MinSNR, uniform_weight
from finetune.sampling import draw
from finetune.training import checkpoint, optimizer, signals
from finetune.training.loop import Step, Training, loop, rate
from finetune.training.tracking import Tracker

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Pictures:
    """The two sides of the data. Held-out samples stand behind the training samples in `all`."""

    found: Found
    train: list[Sample]
    held: list[Sample]

    @property
    def all(self) -> list[Sample]:
        return [*self.train, *self.held]

    def fingerprint(self) -> str:
        sides = [[(s.content, s.caption, s.weight) for s in side] for side in (self.train, self.held)]
        return Cache.key(train=sorted(sides[0]), held=sorted(sides[1]))


def pictures(job: Job) -> Pictures:
    d = job.data
    found = folder.scan(d.path.expanduser(), d.caption, d.trigger, d.background)
    return Pictures(found, *folder.split(found, d.holdout, d.caption, d.trigger, d.background))


def precision(job: Job, device: torch.device) -> str:
    if job.run.precision != "auto":
        return job.run.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "no"  # on a CPU, bf16 autocast is slower than fp32 for small networks


def accelerator_for(job: Job) -> Accelerator:
    """Devices and precision.

    Raises:
        ConfigError: another number of processes than was asked for, or a precision the device lacks.
    """
    state = processes()
    asked = job.run.processes or int(os.environ.get("WORLD_SIZE", 1))
    if state.num_processes != asked:
        raise ConfigError(
            f"{asked} processes were asked for, {state.num_processes} run",
            f"on a CPU start them with: torchrun --nproc-per-node {asked} -m finetune lora ...",
        )
    mixed = precision(job, state.device)
    if mixed == "fp16" and state.device.type == "cpu":
        raise ConfigError("--precision fp16: a CPU cannot train in it", "use --precision no or bf16")
    AcceleratorState._reset_state()  # or a second run in one process keeps the precision of the first
    return Accelerator(mixed_precision=mixed, cpu=state.device.type == "cpu")


def processes() -> PartialState:
    """Joins the other processes. Without an accelerator that must be said, or accelerate quietly starts N runs of one process."""
    return PartialState(cpu=not torch.accelerator.is_available())


def identity(job: Job, found: Pictures, base_sha: str, world: int) -> dict[str, Any]:
    """What must not differ when a run goes on: every setting but the free ones, the data, the base, the global batch."""
    settings = {f"{s}.{k}": v for s, values in job.model_dump(mode="json").items() for k, v in values.items()}
    skip = FREE_SETTINGS | {"data.path", "data.caption", "data.trigger", "data.holdout", "optim.batch", "optim.accumulate"}
    kept = {k: v for k, v in settings.items() if k not in skip}
    return kept | {
        "pictures and captions": found.fingerprint(),
        "base weights": base_sha,
        "global batch": job.optim.batch * job.optim.accumulate * world,
    }


def refuse_changes(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    if changed:
        shown = [k if len(str(now.get(k))) > 40 else f"{k} (was {before.get(k)}, now {now.get(k)})" for k in changed]
        raise ConfigError(
            f"{out} holds a run with other settings: {', '.join(shown)}",
            "--fresh starts over, another --out or --name keeps both; --steps, logging and samples may change",
        )


class Runner:
    """One run in one process."""

    def __init__(self, job: Job, fresh: bool = False) -> None:
        self.job, self.out, self.fresh = job, job.run.folder, fresh
        self.accelerator = accelerator_for(job)
        self.main = self.accelerator.is_main_process
        self.tracker = Tracker(self.out, self.main, job.run.tensorboard)
        self.best, self.baseline = float("inf"), None
        self.stop = signals.Stop()

    baseline: Tensor | None

    # The phases

    def run(self) -> dict[str, Any]:
        job, tracker = self.job, self.tracker
        with signals.watch() as self.stop:
            self.prepare()
            spec = self.family.spec
            denoiser = self.family.load(spec.denoiser)
            self.base_sha = self.family.fingerprint(spec.denoiser)
            training, first = self.assemble(denoiser)
            if first == job.optim.steps and (done := finished(self.out, job)):
                tracker.say(f"already finished: {first} steps in {self.out}; nothing to do (--steps continues, --fresh starts over)")
                return done
            self.train(training, first)
            return self.finish(training)

    def prepare(self) -> None:
        """Reads the pictures, resolves the base, and encodes both sides; only then is the denoiser loaded."""
        job = self.job
        self.pictures = pictures(job)
        describe(self.pictures, self.tracker.say)
        set_seed(job.run.seed)
        where = source.resolve(job.model.base, job.model.variant)
        self.family = load.family(where, self.accelerator.device, DTYPES[precision(job, self.accelerator.device)])
        self.side = job.data.resolution or self.family.resolution
        if self.side % self.family.factor:
            raise ConfigError(f"--resolution {self.side}: must be a multiple of {self.family.factor} for this base")
        if self.fresh and self.main:
            clear(self.out)
        self.accelerator.wait_for_everyone()
        self.encode()

    def encode(self) -> None:
        cache, family, job = Cache(default_root()), self.family, self.job
        mine = self.pictures.all[self.accelerator.process_index :: self.accelerator.num_processes]
        captions = {s.caption for s in self.pictures.all} | set(job.run.sample_prompt)
        report_long_captions(family, sorted(captions), self.tracker.say)
        with self.tracker.phase("encoding pictures", len(mine)) as tick:
            data.encode_pictures(family, mine, self.side, job.data.background, cache, self.polled(tick))
        self.accelerator.wait_for_everyone()
        latents = data.encode_pictures(family, self.pictures.all, self.side, job.data.background, cache, lambda: None)
        family.free("vae")
        with self.tracker.phase("encoding captions", len(captions) + 1) as tick:
            texts = data.encode_captions(family, sorted(captions), cache, self.polled(tick))
        self.encoded = Encoded(self.pictures.all, latents, texts, family.unconditional())
        family.free("text_encoder")

    def polled(self, tick: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            tick()
            if self.stop.number:
                raise Stopped("stopped while encoding; what was encoded is kept", self.stop.number)

        return both

    def assemble(self, denoiser: Any) -> tuple[Training, int]:
        """Injects, restores the newest valid checkpoint, and returns the step it stands at."""
        job, accelerator = self.job, self.accelerator
        trainable = adapter.attach(denoiser, job.method, self.family.spec, job.run.seed)
        count = sum(p.numel() for p in trainable.values())
        self.tracker.say(f"adapter: {len(adapter.layers(denoiser))} layers, {count:,} parameters, strength {job.method.strength:g}")
        if job.run.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        adamw = optimizer.adamw(list(trainable.values()), job.optim.lr, job.optim.weight_decay, job.optim.betas)
        module, prepared = accelerator.prepare(Step(self.family, denoiser), adamw)
        weight = MinSNR(job.objective.min_snr_gamma) if job.objective.min_snr_gamma else uniform_weight
        train = self.pictures.train
        batch = job.optim.batch * job.optim.accumulate * accelerator.num_processes
        plan = IndexPlan(tuple(s.content for s in train), tuple(s.weight for s in train), batch, job.run.seed)
        shadow = [p.detach().clone() for p in trainable.values()] if job.optim.ema else None
        objective = Diffusion(self.family.schedule(), weight)
        training = Training(job, accelerator, self.family, module, trainable, prepared, objective, plan, self.encoded, shadow)
        return training, self.restore(training)

    def restore(self, training: Training) -> int:
        root, job = self.out / "checkpoints", self.job
        self.identity = identity(job, self.pictures, self.base_sha, self.accelerator.num_processes)
        newest = next(checkpoint.valid(root), None)
        if newest is None:
            if skipped := checkpoint.steps(root):
                self.tracker.say(f"no checkpoint in {root} is whole ({len(skipped)} damaged); starting over")
            return 0
        tensors, facts = checkpoint.load(newest)
        refuse_changes(facts["identity"], self.identity, self.out)
        if facts["step"] > job.optim.steps:
            raise ConfigError(
                f"--steps {job.optim.steps}: {self.out} has {facts['step']} steps already", "give more steps, or --fresh to start over"
            )
        training.restore(tensors)
        self.best = facts["best"] if facts["best"] is not None else float("inf")
        self.baseline = tensors.get("held-out/baseline")
        if scaler := self.accelerator.scaler:
            scaler.load_state_dict(facts["scaler"])
        self.tracker.rewind(facts["step"])
        self.tracker.say(f"resuming from step {facts['step']}")
        return int(facts["step"])

    def train(self, training: Training, first: int) -> None:
        job = self.job
        if self.main:
            files.write_text(self.out / "run.yaml", config.dump(job))
        if first == 0:
            self.measure(training, 0)
            self.sample(training, 0)
        with self.tracker.training(first, job.optim.steps) as log:
            done = loop(
                training,
                first,
                stopping=self.stopping,
                log=lambda step, loss: log(step, loss, rate(job, step - 1), job.run.log_every),
                sample=lambda step: self.look_at(training, step),
                save=lambda step: self.save(training, step),
            )
        if self.stop.number and done < job.optim.steps:
            raise Stopped(f"stopped at step {done} of {job.optim.steps}; checkpoint saved", self.stop.number)

    def stopping(self) -> bool:
        if self.accelerator.num_processes == 1:
            return bool(self.stop.number)
        flag = torch.tensor(float(self.stop.number), device=self.accelerator.device)
        self.stop.number = int(self.accelerator.gather(flag[None]).max())  # all stop at the same step
        return bool(self.stop.number)

    # What stands round the loop

    def look_at(self, training: Training, step: int) -> None:
        if step % self.job.run.holdout_every == 0 or step == self.job.optim.steps:
            self.measure(training, step)
        if step % self.job.run.sample_every == 0 and step < self.job.optim.steps:
            self.sample(training, step)

    def save(self, training: Training, step: int) -> None:
        if self.main:
            state = training.state()
            if self.baseline is not None:
                state["held-out/baseline"] = self.baseline
            scaler = self.accelerator.scaler
            facts = {
                "identity": self.identity,
                "best": self.best if self.best < float("inf") else None,
                "scaler": scaler.state_dict() if scaler else None,
            }
            checkpoint.save(self.out / "checkpoints", step, state, facts, self.job.run.keep)
        self.accelerator.wait_for_everyone()

    def measure(self, training: Training, step: int) -> None:
        """The held-out loss, against the base's on the same pictures, timesteps and noises."""
        if not self.pictures.held or not self.main:
            return
        module = self.accelerator.unwrap_model(training.module)
        module.eval()
        indices = range(len(self.pictures.train), len(self.pictures.all))
        with averaged(training), self.accelerator.autocast():
            table = heldout.losses(self.family, module, training.objective, self.encoded, indices)
        module.train()
        if step == 0:
            self.baseline = table
        mean, by_bin = float(table.mean()), [float(x) for x in table.mean(0)]
        values: dict[str, Any] = {"held_out_loss": mean, "held_out_by_timestep": by_bin}
        text = f"held-out loss {mean:.4f} at step {step}"
        if self.baseline is not None and step > 0:
            change = heldout.paired(self.baseline.mean(1), table.mean(1))
            values |= {"held_out_change": change.mean, "held_out_change_low": change.low, "held_out_change_high": change.high}
            text += f", {change.mean:+.4f} against the base (95 % between {change.low:+.4f} and {change.high:+.4f})"
        self.tracker.metrics(step, **values)
        self.tracker.say(text)
        if mean < self.best and step > 0:
            self.best = mean
            with averaged(training):
                state = {n: p.detach().cpu().contiguous() for n, p in training.trainable.items()}
            files.write_bytes(self.out / "checkpoints" / "best.safetensors", files.safetensors(state, {"step": str(step)}))

    def sample(self, training: Training, step: int) -> None:
        if not self.job.run.sample_prompt or not self.main:
            return
        module = self.accelerator.unwrap_model(training.module)
        module.eval()
        with averaged(training), self.accelerator.autocast():
            pipeline = self.family.pipeline(module.nets["denoiser"], texts=False)
            prompts = [self.family.prompt(self.encoded.texts[p], self.encoded.unconditional) for p in self.job.run.sample_prompt]
            self.draw(pipeline, prompts, step)
        self.family.free("vae")
        module.train()

    def draw(self, pipeline: Any, prompts: list[Any], step: int) -> None:
        """Writes one picture a prompt, and a sheet that shows the base's beside them."""
        spec, job = self.family.spec, self.job
        guidance = self.family.source.guidance or spec.guidance
        seeds = [keys.number(job.run.seed, "sample", i) % 2**31 for i in range(len(prompts))]
        images = draw.draw(pipeline, prompts, seeds, spec.sample_steps, guidance, self.side)
        folder = self.out / "samples"
        for i, (image, seed) in enumerate(zip(images, seeds, strict=True)):
            parameters = {
                "prompt": job.run.sample_prompt[i],
                "seed": seed,
                "steps": spec.sample_steps,
                "guidance": guidance,
                "trained_steps": step,
            }
            draw.save_png(image, folder / f"step-{step:06d}-{i}.png", parameters)
        base = [folder / f"step-000000-{i}.png" for i in range(len(images))]
        if step > 0 and all(p.exists() for p in base):
            rows = [(p[:30], [draw.open_png(b), image]) for p, b, image in zip(job.run.sample_prompt, base, images, strict=True)]
            draw.save_png(draw.sheet(rows, ["base", f"step {step}"]), folder / f"step-{step:06d}.png", {})

    # The end

    def finish(self, training: Training) -> dict[str, Any]:
        self.accelerator.wait_for_everyone()
        if not self.main:
            return {}
        job, spec = self.job, self.family.spec
        denoiser = self.accelerator.unwrap_model(training.module).nets["denoiser"]
        path = self.adapter_path(job.run.name)
        with averaged(training):
            self.write(adapter.result(denoiser), path, job.optim.steps)
        written = {"adapter": str(path)}
        best = self.out / "checkpoints" / "best.safetensors"
        if best.exists():
            with weights(training, load_file(best)):
                self.write(adapter.result(denoiser), self.adapter_path(f"{job.run.name}-best"), job.optim.steps)
            written["best"] = str(self.adapter_path(f"{job.run.name}-best"))
        self.family.free(spec.denoiser)
        if job.run.sample_prompt:
            fresh = load.family(self.family.source, self.accelerator.device, self.family.dtype)
            pipeline = fresh.pipeline()
            draw.apply(pipeline, adapter_file.read(path), "trained")
            self.draw(pipeline, [{"prompt": p} for p in job.run.sample_prompt], job.optim.steps)
        summary = written | {
            "out": str(self.out),
            "steps": job.optim.steps,
            "pictures": len(self.pictures.train),
            "held_out": len(self.pictures.held),
            "best_held_out_loss": self.best if self.best < float("inf") else None,
            "written_as": written_as(job),
            "versions": versions(),
        }
        files.write_json(self.out / "summary.json", summary)
        self.tracker.say(f"wrote {path}")
        self.tracker.close()
        return summary

    def adapter_path(self, name: str) -> Path:
        return self.out / (name if layout(self.job, self.family) == "peft" else f"{name}.safetensors")

    def write(self, loras: dict[str, adapter.Lora], path: Path, steps: int) -> None:
        job, spec = self.job, self.family.spec
        where = self.family.source
        contract = adapter_file.Contract(
            base=where.id,
            base_revision=where.revision,
            base_sha256=self.base_sha,
            family=spec.name,
            prediction_type=self.family.schedule().prediction_type,
            resolution=self.side,
            trigger=job.data.trigger,
            guidance=where.guidance or spec.guidance,
            steps=spec.sample_steps,
            sampler=spec.sampler,
            rank=job.method.rank,
            training_alpha=job.method.strength * job.method.rank,
            trained_steps=steps,
        )
        facts = adapter_file.header(contract, job.run.name, spec.architecture, spec.kohya_version, {})
        pairs = {n: (x.down, x.up) for n, x in loras.items()}
        adapter_file.export(pairs, path, layout(job, self.family), spec.denoiser, job.run.save_dtype, facts, where.id)


def layout(job: Job, family: Family) -> str:
    return family.spec.layout if job.run.format == "auto" else job.run.format


def written_as(job: Job) -> dict[str, str]:
    return {"name": job.run.name, "format": job.run.format, "save_dtype": job.run.save_dtype, "prompts": "\n".join(job.run.sample_prompt)}


def finished(out: Path, job: Job) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do for this job."""
    try:
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = summary["steps"] == job.optim.steps and summary["written_as"] == written_as(job) and Path(summary["adapter"]).exists()
    return summary if same else None


def clear(out: Path) -> None:
    """Removes what a run wrote, and nothing else."""
    for name in ("checkpoints", "samples"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("metrics.jsonl", "summary.json", "run.yaml"):
        (out / name).unlink(missing_ok=True)


def versions() -> dict[str, str]:
    names = ("finetune", "torch", "diffusers", "peft", "accelerate", "transformers", "safetensors")
    found = {n: importlib.metadata.version(n) for n in names if importlib.util.find_spec(n)}
    return found | {"python": platform.python_version()}


class weights:
    """The trainable parameters replaced by others, for as long as the block runs."""

    def __init__(self, training: Training, state: dict[str, Tensor] | None) -> None:
        self.training, self.state = training, state

    @torch.no_grad()
    def __enter__(self) -> None:
        if self.state:
            self.kept = {n: p.detach().clone() for n, p in self.training.trainable.items()}
            self.set(self.state)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        if self.state:
            self.set(self.kept)

    def set(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.training.trainable.items():
            parameter.copy_(state[name])


def averaged(training: Training) -> weights:
    """The averaged weights in the place of the live ones, where the job keeps an average."""
    shadow = training.shadow
    return weights(training, dict(zip(training.trainable, shadow, strict=True)) if shadow else None)


def describe(found: Pictures, say: Callable[[str], None]) -> None:
    """What was found, converted and dropped; nothing is silent."""
    held = f", {len(found.held)} held out" if found.held else ""
    say(f"pictures: {len(found.train)} to train on{held}")
    for note, count in sorted(found.found.notes.items()):
        say(f"  {count} {note}")
    for name, why in list(found.found.dropped.items())[:20]:
        say(f"  dropped {name}: {why}")
    if len(found.found.dropped) > 20:
        say(f"  dropped {len(found.found.dropped) - 20} more")


def report_long_captions(family: Family, captions: list[str], say: Callable[[str], None]) -> int:
    """Says which captions the text encoder will not read to their end; returns how many."""
    room = family.window - 2
    long = [c for c in captions if family.tokens(c) > room]
    for c in long[:5]:
        say(f"  caption of {family.tokens(c)} tokens is cut to {room}: {c[:60]}")
    if len(long) > 5:
        say(f"  {len(long) - 5} more captions are cut")
    return len(long)


def train(job: Job, fresh: bool = False) -> dict[str, Any]:
    """Trains `job` to its end and returns the summary; goes on where an earlier run of the same job stopped."""
    return Runner(job, fresh).run()
