"""A run from its job to its files, phase by phase: what is loaded for one phase is freed before the next."""

import contextlib
import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.job import Job
from finetune.data.index_plan import IndexPlan
from finetune.errors import Stopped
from finetune.methods.networks import recompute
from finetune.methods.trainees import Counted
from finetune.preparation.encoding import encode
from finetune.results import checkpoint, clean, export, finished, record, summary, verdict
from finetune.results.progress import Progress
from finetune.results.summary import RoundTrip, Summary
from finetune.run_folder import best_name
from finetune.sampling import canvas
from finetune.training import device, optimizer, signals
from finetune.training.average import PowerAverages
from finetune.training.loop import Training, loop
from finetune.training.observe import Observer, Replaced, averaged_weights
from finetune.training.process import Process
from finetune.training.ready import Ready, ready
from finetune.training.schedule import learning_rate
from finetune.training.step import Step


def train(job: Job, fresh: bool = False) -> dict[str, Any]:
    """Trains `job` to its end and returns the summary's record, empty in all processes but the first; goes on where an earlier run of
    the same job stopped."""
    process = Process.of(job)
    with process.holding():
        prepared = ready(process, job, fresh)
        if done := already(process, prepared):
            return done.record()
        process.stop.patient = True  # from here on there is something to save first
        run = begin(process, prepared)
        run.train()
        ended = run.finish()
        return ended.record() if ended else {}


def begun(job: Job, fresh: bool = False) -> "Run":
    """A run whose networks are loaded, before its first step: for what measures or looks at one."""
    process = Process.of(job)
    return begin(process, ready(process, job, fresh))


def already(process: Process, prepared: Ready) -> Summary | None:
    """What a finished run of this job said at its end."""
    job, done = prepared.work.job, prepared.earlier.finished
    if done is None:
        return None
    if process.main:
        drop_checkpoints(process, job)
        if not finished.summary(job):
            finished.write(job, prepared.work.family.source.folder, done)
    for text in finished.lines(job, done):
        process.tracker.say(text)
    return done


def drop_checkpoints(process: Process, job: Job) -> None:
    if summary.dropped(job):
        checkpoint.remove(process.folder.checkpoints)


def begin(process: Process, prepared: Ready) -> "Run":
    """Encodes, loads, injects what trains, and restores the newest valid checkpoint."""
    work, pictures, accelerator = prepared.work, prepared.data.pictures, process.accelerator
    job, family = work.job, work.family
    encoded, texts = encode(work, pictures, process.crew)
    nets = work.trainees.load()
    groups = work.trainees.attach(nets)
    if job.run.gradient_checkpointing:
        recompute(nets.values())
    _say_groups(process, work.groups)
    step = Step(family, nets, texts, work.trainees.base(nets))
    module, steps = accelerator.prepare(step, optimizer.make(optimizer.torch_groups(groups), job.optim, job.run.seed))
    parameters = optimizer.parameters(groups)
    samples = [*pictures.train, *pictures.classes]
    training = Training(
        job=job,
        accelerator=accelerator,
        family=family,
        module=module,
        trainable=parameters,
        optimizer=steps,
        objective=work.objective,
        plan=IndexPlan(samples, work.batch, job.run.seed, [len(pictures.train), len(pictures.classes)]),
        encoded=encoded,
        shadow={n: p.detach().float().clone() for n, p in parameters.items()} if job.optim.ema else None,
        averages=PowerAverages.of(parameters) if job.optim.ema_posthoc else None,
        settle=lambda step: work.trainees.settle(nets, step / job.optim.steps),
    )
    held = range(len(samples), len(encoded.samples))
    observer = Observer(training, process.folder, work.side, held, process.tracker, process.main, process.stop.poll)
    if family.repaints:
        shown = [*pictures.held, *pictures.train]
        observer.canvases = canvas.of_samples(job.run.sample_prompt, shown, encoded.pixels, work.side)
    return Run(process, prepared, training, observer, restore(process, prepared, training, observer))


def _say_groups(process: Process, groups: list[Counted]) -> None:
    for group in groups:
        part = group.part.replace("_", " ")
        process.tracker.say(f"trains: {part}, {group.parameters:,} parameters, rate {group.lr:g}, decay {group.weight_decay:g}")


def restore(process: Process, prepared: Ready, training: Training, observer: Observer) -> int:
    """Puts back what the newest checkpoint holds; the step that it stands at."""
    saved, progress = prepared.earlier.checkpoint, prepared.earlier.progress
    if not (saved and progress):
        return 0
    tensors = checkpoint.load(saved)
    training.restore(tensors)
    observer.best = float("inf") if progress.best is None else progress.best
    observer.baseline, observer.looked = tensors.get("held-out/baseline"), progress.looked
    observer.change = progress.change
    if (scaler := process.accelerator.scaler) and progress.scaler is not None:
        scaler.load_state_dict(progress.scaler)
    training.skipped = progress.skipped
    process.tracker.rewind(progress.step)
    process.tracker.say(f"resuming from step {progress.step}")
    return progress.step


@dataclass(frozen=True)
class Run:
    """A run whose networks are loaded, from its first step to its files."""

    process: Process
    prepared: Ready
    training: Training
    observer: Observer
    first: int  # step

    @property
    def job(self) -> Job:
        return self.prepared.work.job

    def train(self) -> None:
        """Raises:
        Stopped: a signal came; what was done is saved.
        """
        job, process, first = self.job, self.process, self.first
        if process.main:
            record.write_settings(process.folder.path, job)
            record.write_pictures(process.folder.path, self.prepared.data.pictures)
        if self.look(first):
            raise signals.Interrupted
        gc.freeze()  # what is loaded stays: no collection in the loop need walk it
        with process.tracker.training(first, job.optim.steps) as log:
            done = loop(
                self.training,
                first,
                stopping=process.stopping,
                log=lambda step, loss: log(step, loss, job.optim.lr * learning_rate(job.optim, step - 1), job.run.log_every),
                look_at=self.look,
                save=self.save,
            )
        if process.stop.number and (done < job.optim.steps or self.observer.owes(done)):
            raise Stopped(f"stopped at step {done} of {job.optim.steps}; checkpoint saved", process.stop.number)

    def look(self, step: int) -> bool:
        """What is due at a step, unless it was done before; True if a signal came meanwhile, and may have broken it off."""
        if not self.observer.owes(step):
            return False
        with contextlib.suppress(signals.Interrupted):
            self.observer.look(step)
        return self.process.agreed()

    def save(self, step: int) -> None:
        """A checkpoint."""
        process, training, observer = self.process, self.training, self.observer
        if process.main:
            state = training.state()
            if observer.baseline is not None:
                state["held-out/baseline"] = observer.baseline
            scaler = process.accelerator.scaler
            progress = Progress(
                step=step,
                steps=self.job.optim.steps,
                identity=self.prepared.identity,
                looked=observer.looked,
                best=observer.best if observer.best < float("inf") else None,
                change=observer.change,
                scaler=scaler.state_dict() if scaler else None,
                skipped=training.skipped,
            )
            if training.averages:
                of_data = export.of_pictures(self.job, self.prepared.data.pictures.train)
                training.averages.put_down(process.folder.snapshot(step), of_data)
            checkpoint.save(process.folder.checkpoints, step, state, progress.record(), self.job.run.keep)
        process.wait()

    @property
    def outgoing(self) -> export.Outgoing:
        """What the files are written with."""
        work, train = self.prepared.work, self.prepared.data.pictures.train
        contract = export.contract(self.job, work.family, self.prepared.base_sha, work.side, work.start)
        data = export.of_pictures(self.job, train)
        return export.Outgoing(work.trainees, self.process.folder, contract, data, self.process.tracker.say)

    def finish(self) -> Summary | None:
        """Writes the files; what was written, not the live model, draws the last samples; the summary, which the first process returns,
        comes last."""
        process, training, observer, outgoing = self.process, self.training, self.observer, self.outgoing
        process.wait()
        if not process.main:
            return None
        job, best = self.job, observer.best_state()
        nets = dict(training.step.nets.items())
        with averaged_weights(training):
            written = outgoing.write(nets, job.run.name)
        of_best: dict[str, Path] = {}
        if best:
            with Replaced(training, best.tensors):
                of_best["best"] = next(iter(outgoing.write(nets, best_name(job.run.name)).values()))
        nets.clear()
        samples = observer.draw_written(written) if job.run.sample_prompt else []
        trip = observer.round_trips(written["vae_folder"]) if "vae_folder" in written and observer.held else None
        facts = self._facts(best is not None)
        if trip:
            facts["held-out PSNR, and the base's"] = f"{trip.run:.2f} dB, {trip.base:.2f} dB"
        export.write_card(process.folder.path, job, outgoing.contract, written, self.prepared.work.family, facts, samples)
        ended = self._summary(written | of_best, best.step if best else None, trip, bool(samples) or trip is not None)
        checkpoint.keep_newest(process.folder.checkpoints, job.optim.steps, job.run.keep)
        summary.write(process.folder.path, ended, self.prepared.identity)
        finished.write(job, self.prepared.work.family.source.folder, ended)
        drop_checkpoints(process, job)
        clean.sweep(process.folder.path)  # what was kept as long as it could have been the last whole copy
        for text in [*(f"wrote {path}" for path in written.values()), *verdict.lines(job, ended)]:
            process.tracker.say(text)
        process.tracker.close()
        return ended

    def _facts(self, measured: bool) -> dict[str, object]:
        """What the card's table says beside the settings."""
        pictures = self.prepared.data.pictures
        facts: dict[str, object] = {
            "pictures": len(pictures.train),
            "class pictures": len(pictures.classes),
            "pictures a step": self.prepared.work.batch,
            "best held-out loss": f"{self.observer.best:.4f}" if measured else "not measured",
        }
        if self.process.accelerator.scaler:
            facts["updates that the fp16 scaler skipped"] = self.training.skipped
        return facts

    def _summary(self, written: Mapping[str, Path], best_step: int | None, trip: RoundTrip | None, drawn: bool) -> Summary:
        job, process, observer, pictures = self.job, self.process, self.observer, self.prepared.data.pictures
        prompts = [*job.run.sample_prompt, *filter(None, [job.trigger]), pictures.train[0].caption]
        return Summary(
            written=written,
            out=process.folder.path,
            steps=job.optim.steps,
            pictures=len(pictures.train),
            distinct_pictures=len({s.content for s in pictures.train}),
            held_out=len(pictures.held),
            verdict=verdict.verdict(observer.change),
            measure=observer.change,
            round_trip=trip,
            best_held_out_loss=observer.best if best_step is not None else None,
            best_step=best_step,
            sheet=observer.sheet if drawn else None,
            prompt=next(filter(None, prompts), "a picture"),
            processes=process.count,
            skipped_updates=self.training.skipped,
            peak_memory_bytes=device.peak_memory(process.accelerator.device),
            written_as=summary.written_as(job),
            versions=record.versions(),
        )
