"""A run from its job to its files, phase by phase: what is loaded for one phase is freed before the next."""

import contextlib
import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.config.job import Job
from finetune.data.index_plan import IndexPlan
from finetune.errors import Stopped
from finetune.methods import trainees
from finetune.methods.trainees import Group
from finetune.preparation.encoding import encode
from finetune.results import checkpoint, clean, export, finished, record, summary, verdict
from finetune.results.summary import Summary
from finetune.run_folder import best_name
from finetune.training import device, optimizer, signals
from finetune.training.average import PowerAverages
from finetune.training.loop import Training, loop
from finetune.training.observe import Observer, Weights, averaged
from finetune.training.process import Process
from finetune.training.ready import Ready, ready
from finetune.training.schedule import learning_rate
from finetune.training.step import Step


def train(job: Job, fresh: bool = False) -> dict[str, Any]:
    """Trains `job` to its end and returns the summary; goes on where an earlier run of the same job stopped."""
    process = Process.of(job)
    with process.holding():
        prepared = ready(process, job, fresh)
        if done := already(process, prepared):
            return done
        process.stop.patient = True  # from here on there is something to save first
        run = begin(process, prepared)
        run.train()
        return run.finish()


def begun(job: Job, fresh: bool = False) -> "Run":
    """A run whose networks are loaded, before its first step: for what measures or looks at one."""
    process = Process.of(job)
    return begin(process, ready(process, job, fresh))


def already(process: Process, prepared: Ready) -> dict[str, Any] | None:
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
    return done.record()


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
        trainees.recompute(nets)
    _say_groups(process, groups)
    step = Step(family, nets, texts, work.trainees.base(nets))
    module, moves = accelerator.prepare(step, optimizer.make(optimizer.rows(groups), job.optim, job.run.seed))
    parameters = {name: parameter for group in groups for name, parameter in group.parameters.items()}
    samples = [*pictures.train, *pictures.classes]
    training = Training(
        job, accelerator, family, module, parameters, moves, work.objective,
        IndexPlan(samples, work.batch, job.run.seed, [len(pictures.train), len(pictures.classes)]), encoded,
        shadow=[p.detach().float().clone() for p in parameters.values()] if job.optim.ema else None,
        averages=PowerAverages.of(parameters) if job.optim.ema_posthoc else None,
        settle=lambda step: work.trainees.settle(nets, step / job.optim.steps),
    )  # fmt: skip
    held = range(len(samples), len(encoded.samples))
    observer = Observer(training, process.folder.path, work.side, held, process.tracker, process.main, process.stop.poll)
    return Run(process, prepared, training, observer, restore(process, prepared, training, observer))


def _say_groups(process: Process, groups: list[Group]) -> None:
    for group in groups:
        first, count = next(iter(group.parameters)), sum(p.numel() for p in group.parameters.values())
        what = "new tokens" if first.endswith(".new_tokens") else first.split(".")[0].replace("_", " ")
        process.tracker.say(f"trains: {what}, {count:,} parameters, rate {group.lr:g}, decay {group.weight_decay:g}")


def restore(process: Process, prepared: Ready, training: Training, observer: Observer) -> int:
    """Puts back what the newest checkpoint holds; the step that it stands at."""
    if not prepared.earlier.checkpoint:
        return 0
    tensors, facts = checkpoint.load(prepared.earlier.checkpoint)
    training.restore(tensors)
    observer.best = float("inf") if facts["best"] is None else facts["best"]
    observer.baseline, observer.looked = tensors.get("held-out/baseline"), facts["looked"]
    observer.change = facts.get("change")
    if scaler := process.accelerator.scaler:
        scaler.load_state_dict(facts["scaler"])
    training.skipped = facts.get("skipped", 0)
    process.tracker.rewind(facts["step"])
    process.tracker.say(f"resuming from step {facts['step']}")
    return int(facts["step"])


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
            facts = {
                "identity": self.prepared.identity,
                "steps": self.job.optim.steps,
                "looked": observer.looked,
                "change": observer.change,
                "best": observer.best if observer.best < float("inf") else None,
                "scaler": scaler.state_dict() if scaler else None,
                "skipped": training.skipped,
            }
            if training.averages:
                training.averages.put_down(process.folder.snapshot(step), self.outgoing.data)
            checkpoint.save(process.folder.checkpoints, step, state, facts, self.job.run.keep)
        process.wait()

    @property
    def outgoing(self) -> export.Outgoing:
        """What the files are written with."""
        work, train = self.prepared.work, self.prepared.data.pictures.train
        contract = export.contract(self.job, work.family, self.prepared.base_sha, work.side, work.start)
        data = export.of_pictures(self.job, train)
        return export.Outgoing(work.trainees, self.process.folder, contract, data, self.process.tracker.say)

    def finish(self) -> dict[str, Any]:
        """Writes the adapter; the written file, not the live model, draws the last samples; the summary comes last."""
        process, training, observer, outgoing = self.process, self.training, self.observer, self.outgoing
        process.wait()
        if not process.main:
            return {}
        job, best = self.job, observer.best_state()
        nets = dict(training.step.nets.items())
        with averaged(training):
            written = outgoing.write(nets, job.run.name)
        files = {kind: str(path) for kind, path in written.items()}
        if best:
            with Weights(training, best.tensors):
                files["best"] = str(next(iter(outgoing.write(nets, best_name(job.run.name)).values())))
        nets.clear()
        samples = observer.draw_written(written) if job.run.sample_prompt else []
        facts = self._facts(best is not None)
        licence = self.prepared.work.family.source.licence
        export.write_card(process.folder.path, job, outgoing.contract, written, licence, facts, samples)
        ended = self._summary(files, best.step if best else None, bool(samples))
        checkpoint.prune(process.folder.checkpoints, job.optim.steps, job.run.keep)
        summary.write(process.folder.path, Summary.of(ended), self.prepared.identity)
        finished.write(job, self.prepared.work.family.source.folder, Summary.of(ended))
        drop_checkpoints(process, job)
        clean.sweep(process.folder.path)  # what was kept as long as it could have been the last whole copy
        for text in [*(f"wrote {path}" for path in written.values()), *verdict.lines(job, Summary.of(ended))]:
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

    def _summary(self, files: Mapping[str, str], best_step: int | None, drawn: bool) -> dict[str, Any]:
        job, process, observer, pictures = self.job, self.process, self.observer, self.prepared.data.pictures
        prompts = [*job.run.sample_prompt, *filter(None, [job.trigger]), pictures.train[0].caption]
        return dict(files) | {
            "files": sorted(files),
            "out": str(process.folder.path),
            "steps": job.optim.steps,
            "pictures": len(pictures.train),
            "distinct_pictures": len({s.content for s in pictures.train}),
            "held_out": len(pictures.held),
            **verdict.measured(observer.change),
            "best_held_out_loss": observer.best if best_step is not None else None,
            "best_step": best_step,
            "sheet": str(observer.sheet) if drawn else None,
            "prompt": prompts[0],
            "processes": process.count,
            "skipped_updates": self.training.skipped,
            "peak_memory_bytes": device.peak_memory(process.accelerator.device),
            "written_as": summary.written_as(job),
            "versions": record.versions(),
        }
