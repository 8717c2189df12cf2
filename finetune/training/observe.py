"""What is looked at during a run: the held-out loss against the base's, and samples beside the base's own pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from finetune import files, randomness, tensor_files
from finetune.adapters import embedding
from finetune.adapters.read import read
from finetune.config.optimizers import OPTIMIZERS
from finetune.data.crop import to_image
from finetune.data.encoded import Text
from finetune.data.inputs import PIXELS
from finetune.errors import DataError
from finetune.evaluation import heldout, round_trip
from finetune.families import load, source
from finetune.families.autoencoder import decode
from finetune.families.family import Family
from finetune.results.summary import Measure, RoundTrip
from finetune.run_folder import RunFolder
from finetune.sampling import draw
from finetune.sampling.canvas import Canvas
from finetune.sampling.generate import compose
from finetune.sampling.pipeline import Pipeline
from finetune.training.loop import Training
from finetune.training.optimizer import own_average
from finetune.training.step import Asked
from finetune.training.tracking import Tracker

WORST = 8  # pictures on the sheet of a decoder


class Replaced:
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


def averaged_weights(training: Training) -> Replaced:
    """The averaged weights in the place of the live ones, where the job keeps an average, or its optimizer does."""
    if OPTIMIZERS[training.job.optim.optimizer].averages:
        return Replaced(training, own_average(training.inner, training.trainable))
    return Replaced(training, training.shadow)


class Best(NamedTuple):
    """Trainable parameters by name, and the step that they are of."""

    tensors: dict[str, Tensor]
    step: int


@dataclass
class Observer:
    """Draws and measures in the first process; the model is put back as it was."""

    training: Training
    folder: RunFolder
    side: int  # pixels
    held: range  # rows of `training.encoded.samples`
    tracker: Tracker
    active: bool
    poll: Callable[[], None]  # called between pictures; what it raises breaks a look off, which is then taken again
    best: float = float("inf")
    looked: int = -1  # the last step that was looked at
    baseline: Tensor | None = None  # the base's held-out losses, [N, timesteps]
    canvases: Mapping[str, Canvas] = field(default_factory=dict)  # that prompts are drawn upon
    change: Measure | None = None  # of the last held-out loss against the base's
    sheet: Path | None = None  # of the last pictures beside the base's

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether to draw samples and to measure at a step; the last samples are the written file's."""
        run, last = self.training.job.run, step == self.training.job.optim.steps
        sample = bool(run.sample_prompt) and step % run.sample_every == 0 and not last
        return sample, bool(self.held) and (step % run.holdout_every == 0 or last)

    def owes(self, step: int) -> bool:
        return any(self.due(step)) and self.looked < step

    def look(self, step: int) -> None:
        """What is due at a step. Metrics are written last, so that a look that was broken off leaves none."""
        sample, measure = self.due(step)
        if sample:
            self.sample(step)
        if measure:
            self.measure(step)
        self.looked = step

    @property
    def best_file(self) -> Path:
        return self.folder.best

    def best_state(self) -> "Best | None":
        """The weights with the lowest held-out loss; nothing where none was measured, or its file is damaged, which is said."""
        if not self.best_file.exists():
            return None
        try:
            tensors, facts = tensor_files.open_sealed(self.best_file)
            return Best(tensors, int(facts["step"]))
        except (OSError, ValueError, LookupError):
            self.tracker.say(f"note: {self.best_file} is damaged: what was best on held-out pictures is not written")
            return None

    def measure(self, step: int) -> None:
        """The held-out loss; from step 1 on also its change against the base on the same pictures, timesteps and noises."""
        if not self.active:
            return
        training = self.training
        module = training.step
        module.eval()
        with averaged_weights(training), training.accelerator.autocast():
            table = heldout.losses(
                training.accelerator.device,
                lambda batch: Asked(module, module, batch),
                training.objective,
                training.encoded,
                self.held,
                self.poll,
            )
        module.train()
        mean = float(table.mean())
        values: dict[str, float | list[float]] = {"held_out_loss": mean, "held_out_by_timestep": [float(x) for x in table.mean(0)]}
        text = f"held-out loss {mean:.4f} at step {step}"
        if step == 0:
            self.baseline = table
        elif self.baseline is not None:
            change = heldout.paired(self.baseline.mean(1), table.mean(1))
            values |= {"held_out_change": change.mean, "held_out_change_low": change.low, "held_out_change_high": change.high}
            sure = f"95 % between {change.low:+.4f} and {change.high:+.4f}" if change.count > 1 else "one picture alone has no interval"
            low, high = change.ends
            self.change = Measure(mean, float(self.baseline.mean()), change.mean, low, high, change.count)
            text += f", {change.mean:+.4f} against the base ({sure})"
        self.tracker.metrics(step, **values)
        self.tracker.say(text)
        if step > 0 and mean < self.best:
            self.best = mean
            with averaged_weights(training):
                state = tensor_files.sealed(training.trainable, {"step": str(step)})
            files.write_bytes(self.best_file, state)

    def draw_written(self, written: Mapping[str, Path]) -> list[tuple[str, str]]:
        """The last samples: from the written files, by kind, not from the live networks, which have to go first. Returns as `draw` does."""
        training, family, job = self.training, self.training.family, self.training.job
        training.release()
        training.accelerator.free_memory()
        family.parts.free(*family.spec.parts)
        where = source.resolve_base(str(written["model"])) if "model" in written else family.source
        fresh = load.family(where, family.device, family.dtype)
        adapters = [(read(written["adapter"]), 1.0)] if "adapter" in written else []
        embeddings = [embedding.read(path) for kind, path in written.items() if kind.startswith("embedding")]
        composed = compose(fresh, adapters, embeddings, job.run.sample_prompt)
        wanted = {p: composed.texts[p] for p in job.run.sample_prompt}
        return self.draw(fresh, composed.pipeline, wanted, composed.unconditional, job.optim.steps)

    def round_trips(self, written: Path) -> RoundTrip:
        """What comes back of the held-out pictures by the written autoencoder, a folder, and by the base's; and a sheet of the worst."""
        training, family, step = self.training, self.training.family, self.training.job.optim.steps
        training.release()
        training.accelerator.free_memory()
        family.parts.free(*family.spec.parts)
        fresh = load.family(replace(family.source, vae=written), family.device, family.dtype)
        encoded, nets = training.encoded, [family.parts.load("vae"), fresh.parts.load("vae")]
        before, after = (round_trip.decibels(partial(decode, net), encoded, self.held, self.poll) for net in nets)
        change, rows = heldout.paired(before, after), []
        for place in after.argsort()[:WORST].tolist():
            sample = encoded.samples[self.held[place]]
            columns = encoded.plain([sample]).columns
            pictures = [columns[PIXELS], *(decode(net, columns["x_0"]) for net in nets)]
            name = sample.name.rpartition("/")[2]  # of a folder's own, without its path, as sheets are shown around
            label = f"{name}: {before[place]:.1f} dB, and {after[place]:.1f} at step {step}"
            rows.append((label, [to_image(picture[0].cpu()) for picture in pictures]))
        self.sheet = self.folder.sheet(step)
        draw.save_png(draw.sheet(rows, ["picture", "base", f"step {step}"]), self.sheet, {})
        return RoundTrip(float(after.mean()), float(before.mean()), change.mean, *change.ends, change.count)

    @torch.no_grad()
    def sample(self, step: int) -> None:
        """One picture a prompt from the live networks; the autoencoder comes back for as long as it draws."""
        training = self.training
        if not self.active:
            return
        family, prompts, module = training.family, training.job.run.sample_prompt, training.step
        module.eval()
        try:
            with averaged_weights(training), training.accelerator.autocast():
                *texts, unconditional = module.texts([*prompts, None])
                pipeline = family.pipeline(module.nets["denoiser"])
                self.draw(family, pipeline, dict(zip(prompts, texts, strict=True)), unconditional, step)
        except torch.OutOfMemoryError:  # a picture is not worth a run
            self.tracker.say(f"note: no samples at step {step}: there is no memory to draw beside training (--no-samples)")
        family.parts.free("vae")
        module.train()

    def draw(self, family: Family, pipeline: Pipeline, texts: Mapping[str, Text], unconditional: Text, step: int) -> list[tuple[str, str]]:
        """Writes one picture a prompt, and from step 1 on a sheet that shows the base's beside them; returns prompts and file names.

        A prompt's seed and file name come from the prompt: the base's picture beside it is never another prompt's.
        """
        run = self.training.job.run
        steps, guidance = family.inference()
        rows, folder, drawn = [], self.folder, []
        for prompt, text in texts.items():
            self.poll()
            number = randomness.number(run.seed, "sample", prompt)
            seed, name = number % 2**31, f"{number % 16**6:06x}"
            try:
                on = self.canvases.get(prompt)
                image = draw.draw(family, pipeline, [(text, unconditional)], [seed], steps, guidance, self.side, canvas=on)[0]
            except draw.NotFinite as e:  # the weights' own guard stops a run; a picture alone does not
                self.tracker.say(f"note: sample {prompt[:60]!r} at step {step} is left black: {e.message}")
                image = Image.new("RGB", (self.side, self.side))
            facts = {"prompt": prompt, "seed": seed, "steps": steps, "guidance": guidance, "trained_steps": step}
            facts |= {"vae": family.source.vae_id} if family.source.vae_id else {}
            path = folder.sample(step, name)
            drawn.append((prompt, path.relative_to(folder.path).as_posix()))
            draw.save_png(image, path, facts)
            rows.append((prompt, [*([on.hole] if on else []), *self._beside(folder.sample(0, name)), image]))
        if step > 0:
            columns = [*(["picture"] if self.canvases else []), "base", f"step {step}"]
            columns = columns if all(len(images) == len(columns) for _, images in rows) else []
            self.sheet = folder.sheet(step)
            draw.save_png(draw.sheet(rows, columns), self.sheet, {})
        return drawn

    def _beside(self, base: Path) -> list[Image.Image]:
        """The base's own picture; none where it was not drawn, or is damaged, which is said."""
        if not base.exists():
            return []
        try:
            return [draw.open_png(base)]
        except DataError as e:
            self.tracker.say(f"note: {e.message}: the sheet is without it")
            return []
