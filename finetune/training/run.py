"""A run from its job to its files, phase by phase: what is loaded for one phase is freed before the next."""

import contextlib
import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finetune import files
from finetune.adapters.contract import Contract
from finetune.adapters.write import DTYPES
from finetune.config import optimizers
from finetune.config.job import Job
from finetune.data import prune
from finetune.data.plan import IndexPlan, describe
from finetune.errors import Stopped
from finetune.families import load, trust
from finetune.header import tensors_file
from finetune.methods import adapter, method
from finetune.objectives.build import objective
from finetune.preparation import requirements
from finetune.preparation.class_pictures import ClassPictures
from finetune.preparation.encoding import Work, encode
from finetune.preparation.requirements import add_tokens, buckets, check_drawing, check_subject, cut, pictures, settled, shown, side
from finetune.preparation.start import start
from finetune.results import checkpoint, clean, export, finished, lock, record, summary, verdict
from finetune.results.earlier import Earlier
from finetune.results.summary import Summary
from finetune.run_folder import RunFolder, best_name
from finetune.training import device, optimizer, plan, signals
from finetune.training.average import PowerAverages
from finetune.training.loop import Training, loop
from finetune.training.observe import Observer, Weights, averaged
from finetune.training.schedule import learning_rate
from finetune.training.step import Step
from finetune.training.tracking import Tracker


def train(job: Job, fresh: bool = False) -> dict[str, Any]:
    """Trains `job` to its end and returns the summary; goes on where an earlier run of the same job stopped."""
    return Runner(job, fresh).run()


class Runner:
    """One run in one process. The methods stand in the order in which they happen."""

    def __init__(self, job: Job, fresh: bool = False) -> None:
        self.job, self.out, self.fresh = job, job.run.folder, fresh
        self.accelerator = device.accelerator_for(job)
        self.main = self.accelerator.is_main_process
        self.tracker = Tracker(self.out, self.main, job.run.tensorboard)
        self.stop, self.polls = signals.Stop(), 0

    @property
    def global_batch(self) -> int:
        """Pictures a step, over all processes."""
        return self.job.optim.batch * self.job.optim.accumulate * int(self.accelerator.num_processes)

    def run(self) -> dict[str, Any]:
        with signals.watch() as self.stop, lock.held(self.out) if self.main else contextlib.nullcontext():
            try:
                self.prepare()
                if done := self.finished():
                    return done
                self.stop.patient = True  # from here on there is something to save first
                self.encode()
                training, first = self.assemble()
                self.train(training, first)
                return self.finish(training)
            except signals.Interrupted:
                raise Stopped("stopped; what was done is kept", self.stop.number) from None

    def prepare(self) -> None:
        """Everything that can be refused without a model: pictures, base, settings, an earlier run's record."""
        job = self.job
        if self.main:
            prune.begin(self.out)
            clean.sweep(self.out)
        self.pictures = pictures(job)
        self.pictures.describe(self.tracker.say)
        with self.accelerator.main_process_first():  # which may download or unpack it for all
            where = requirements.base(job)
            trust.remember(job.model.base)
        dtype = device.DTYPES[device.precision(job, self.accelerator.device)]
        self.family = load.family(where, self.accelerator.device, dtype)
        drawn = job.run.automatic
        self.job = job = settled(job, self.pictures, self.family)
        if drawn and job.run.sample_prompt:
            self.tracker.say(f"draws before and after: {', '.join(p[:40] for p in job.run.sample_prompt)} (--no-samples draws nothing)")
        self.side = side(job, self.family)
        check_drawing(job, self.family)
        check_subject(job, self.family, self.global_batch)
        add_tokens(job, self.family, self.pictures.captions)
        self.objective = objective(self.family.schedule().to(self.accelerator.device), job.objective, job.trigger)
        optimizers.check(job.optim.optimizer, self.accelerator.device.type)
        self.start = start(job, self.family)
        layers = export.check(job, self.family, self.start)
        plan.trainable(job, self.family, self.start)
        for note in self.family.notes() + export.notes(job, self.family, layers):
            self.tracker.say(note)
        if self.main:
            files.check_writable(self.out)
        if self.fresh and self.main:
            record.clear(self.out)
        self.accelerator.wait_for_everyone()
        base = {p: where.fingerprint(p) for p in (*where.spec.parts, *where.spec.tokenizers, "scheduler")}
        self.base_sha = base[where.spec.denoiser]
        if job.method.start is not None:
            base |= {"start": files.sha256(tensors_file(job.method.start))}
        self.identity = record.identity(job, base, self.accelerator.num_processes)
        self.earlier = Earlier.of(job)
        self.earlier.refuse(self.identity)  # before class pictures are drawn for nothing
        self.draw_class_pictures()
        sizes, batch = buckets(job, self.family), shown(job, self.global_batch)
        cut(self.pictures, sizes, batch)
        describe(self.pictures.train, batch, sizes, self.tracker.say)
        self.identity[record.PICTURES] = self.pictures.fingerprint()
        self.earlier.refuse_pictures(self.identity, self.pictures, self.tracker.say)
        self.accelerator.wait_for_everyone()  # all have looked, before the first process removes anything
        if self.earlier.facts is None and self.main:
            record.clear(self.out)  # what one left that never got to a valid checkpoint

    def draw_class_pictures(self) -> None:
        """Makes up what is missing of the class pictures, and puts them beside the others."""
        if not self.job.subject.prior:
            return
        family, accelerator = self.family, self.accelerator
        if family.source.zero_snr:  # the base draws by its own schedule
            family = load.family(replace(family.source, zero_snr=False), family.device, family.dtype)
        made = ClassPictures(self.job, family, self.side)
        made.ensure(accelerator.process_index, accelerator.num_processes, self.tracker.phase, self.stop.poll)
        accelerator.wait_for_everyone()
        self.pictures.classes = made.samples()
        self.tracker.say(f"class pictures: {len(self.pictures.classes)} in {made.folder}")
        made.own.describe(self.tracker.say)

    def finished(self) -> dict[str, Any] | None:
        if (done := self.earlier.finished) is None:
            return None
        if self.main:
            self.drop_checkpoints()
            if not finished.summary(self.job):
                finished.write(self.job, self.family.source.folder, done)
        for text in finished.lines(self.job, done):
            self.tracker.say(text)
        return done.record()

    def drop_checkpoints(self) -> None:
        if summary.dropped(self.job):
            checkpoint.remove(RunFolder(self.out).checkpoints)

    def encode(self) -> None:
        accelerator = self.accelerator
        work = Work(
            self.tracker.phase, self.tracker.say, self.stop.poll, accelerator.process_index, accelerator.num_processes,
            accelerator.wait_for_everyone,
        )  # fmt: skip
        self.encoded, self.texts = encode(self.job, self.family, self.pictures, self.objective, work)

    def networks(self) -> dict[str, Any]:
        """What takes part in a step, by its place in it; what trains whole is a master."""
        family, job = self.family, self.job
        whole = method.taught(family, job) if job.method.kind == "full" else []
        masters = DTYPES[job.optim.masters]
        return {k: family.parts.load(part, masters if k in whole else None) for k, part in method.parts(family, job).items()}

    def assemble(self) -> tuple[Training, int]:
        """Injects what trains, restores the newest valid checkpoint, and returns the step it stands at."""
        job, accelerator, family, nets = self.job, self.accelerator, self.family, self.networks()
        groups = method.attach(family, nets, job, self.start)
        trainable = {n: p for g in groups for n, p in g.parameters.items()}
        if job.run.gradient_checkpointing:
            export.recompute(nets)
        for group in groups:
            count, part = sum(p.numel() for p in group.parameters.values()), next(iter(group.parameters)).rpartition(".")[0]
            what = "new tokens" if group.parameters.keys() <= {f"{p}.new_tokens" for p in nets} else part.split(".")[0].replace("_", " ")
            self.tracker.say(f"trains: {what}, {count:,} parameters, rate {group.lr:g}, decay {group.weight_decay:g}")
        made = optimizer.make(optimizer.rows(groups), job.optim, job.run.seed)
        module, prepared = accelerator.prepare(Step(family, nets, self.texts, lambda: adapter.disabled(nets.values())), made)
        sides = self.pictures.train, self.pictures.classes
        samples = [s for side in sides for s in side]
        index = IndexPlan(samples, self.global_batch, job.run.seed, [len(side) for side in sides])
        shadow = [p.detach().float().clone() for p in trainable.values()] if job.optim.ema else None
        training = Training(job, accelerator, self.family, module, trainable, prepared, self.objective, index, self.encoded, shadow)
        training.averages = PowerAverages.of(trainable) if job.optim.ema_posthoc else None
        training.settle = lambda step: method.settle(nets, job, step)
        held = range(len(samples), len(self.encoded.samples))
        self.observer = Observer(training, self.out, self.side, held, self.tracker, self.main, self.stop.poll)
        return training, self.restore(training)

    def restore(self, training: Training) -> int:
        if not self.earlier.checkpoint:
            return 0
        tensors, facts = checkpoint.load(self.earlier.checkpoint)
        training.restore(tensors)
        observer = self.observer
        observer.best = float("inf") if facts["best"] is None else facts["best"]
        observer.baseline, observer.looked = tensors.get("held-out/baseline"), facts["looked"]
        observer.change = facts.get("change")
        if scaler := self.accelerator.scaler:
            scaler.load_state_dict(facts["scaler"])
        training.skipped = facts.get("skipped", 0)
        self.tracker.rewind(facts["step"])
        self.tracker.say(f"resuming from step {facts['step']}")
        return int(facts["step"])

    def train(self, training: Training, first: int) -> None:
        job = self.job
        if self.main:
            record.write_settings(self.out, job)
            record.write_pictures(self.out, self.pictures)
        if self.look(first):
            raise signals.Interrupted
        gc.freeze()  # what is loaded stays: no collection in the loop need walk it
        with self.tracker.training(first, job.optim.steps) as log:
            done = loop(
                training,
                first,
                stopping=self.stopping,
                log=lambda step, loss: log(step, loss, job.optim.lr * learning_rate(job.optim, step - 1), job.run.log_every),
                look_at=self.look,
                save=lambda step: self.save(training, step),
            )
        if self.stop.number and (done < job.optim.steps or self.observer.owes(done)):
            raise Stopped(f"stopped at step {done} of {job.optim.steps}; checkpoint saved", self.stop.number)

    def look(self, step: int) -> bool:
        """What is due at a step, unless it was done before; True if a signal came meanwhile, and may have broken it off."""
        if not self.observer.owes(step):
            return False
        with contextlib.suppress(signals.Interrupted):
            self.observer.look(step)
        return self.agreed()

    def stopping(self) -> bool:
        self.polls += 1  # several processes stop at the same step; asking waits on the device, so seldom
        if self.accelerator.num_processes > 1 and self.polls % self.job.run.log_every:
            return False
        return self.agreed()

    def agreed(self) -> bool:
        """Whether a signal came to any process."""
        if self.accelerator.num_processes > 1:
            number = self.accelerator.gather(torch.tensor([self.stop.number], device=self.accelerator.device))
            self.stop.number = int(number.max())
        return bool(self.stop.number)

    def save(self, training: Training, step: int) -> None:
        if self.main:
            state = training.state()
            if self.observer.baseline is not None:
                state["held-out/baseline"] = self.observer.baseline
            scaler, best = self.accelerator.scaler, self.observer.best
            facts = {
                "identity": self.identity,
                "steps": self.job.optim.steps,
                "looked": self.observer.looked,
                "change": self.observer.change,
                "best": best if best < float("inf") else None,
                "scaler": scaler.state_dict() if scaler else None,
                "skipped": training.skipped,
            }
            if training.averages:
                training.averages.put_down(RunFolder(self.out).snapshot(step), self.of_pictures)
            checkpoint.save(RunFolder(self.out).checkpoints, step, state, facts, self.job.run.keep)
        self.accelerator.wait_for_everyone()

    def finish(self, training: Training) -> dict[str, Any]:
        """Writes the adapter; the written file, not the live model, draws the last samples; the summary comes last."""
        self.accelerator.wait_for_everyone()
        if not self.main:
            return {}
        job, best = self.job, self.observer.best_state()
        nets = dict(training.step.nets.items())
        with averaged(training):
            written = self.export(nets, job.run.name)
        made = {kind: str(path) for kind, path in written.items()}
        if best:
            with Weights(training, best.tensors):
                made["best"] = str(next(iter(self.export(nets, best_name(job.run.name)).values())))
        nets.clear()
        samples = self.observer.draw_written(written) if job.run.sample_prompt else []
        facts = {
            "pictures": len(self.pictures.train),
            "class pictures": len(self.pictures.classes),
            "pictures a step": self.global_batch,
            "best held-out loss": f"{self.observer.best:.4f}" if best else "not measured",
        }
        if self.accelerator.scaler:
            facts["updates that the fp16 scaler skipped"] = training.skipped
        export.write_card(self.out, job, self.contract, written, self.family.source.licence, facts, samples)
        prompts = [*job.run.sample_prompt, *filter(None, [job.trigger]), self.pictures.train[0].caption]
        said = made | {
            "files": sorted(made),
            "out": str(self.out),
            "steps": job.optim.steps,
            "pictures": len(self.pictures.train),
            "distinct_pictures": len({s.content for s in self.pictures.train}),
            "held_out": len(self.pictures.held),
            **verdict.measured(self.observer.change),
            "best_held_out_loss": self.observer.best if best else None,
            "best_step": best.step if best else None,
            "sheet": str(self.observer.sheet) if samples else None,
            "prompt": prompts[0],
            "processes": self.accelerator.num_processes,
            "skipped_updates": training.skipped,
            "peak_memory_bytes": device.peak_memory(self.accelerator.device),
            "written_as": summary.written_as(job),
            "versions": record.versions(),
        }
        ended = Summary.of(said)
        checkpoint.prune(RunFolder(self.out).checkpoints, job.optim.steps, job.run.keep)
        summary.write(self.out, ended, self.identity)
        finished.write(job, self.family.source.folder, ended)
        self.drop_checkpoints()
        clean.sweep(self.out)  # what was kept as long as it could have been the last whole copy
        for text in [*(f"wrote {path}" for path in written.values()), *verdict.lines(job, ended)]:
            self.tracker.say(text)
        self.tracker.close()
        return said

    @property
    def contract(self) -> Contract:
        return export.contract(self.job, self.family, self.base_sha, self.side, self.start)

    @property
    def of_pictures(self) -> dict[str, str]:
        return export.of_pictures(self.job, self.pictures.train)

    def export(self, nets: Mapping[str, Any], name: str) -> dict[str, Path]:
        return export.write(self.out, self.job, self.family, self.contract, self.of_pictures, nets, name, self.tracker.say)
