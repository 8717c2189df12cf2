"""The one loop: predict, objective, backward, clip, step; then log, sample, checkpoint. It names no family and no method."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from finetune import randomness
from finetune.config.job import Job
from finetune.data.batch import Batch
from finetune.data.encoded import Encoded
from finetune.data.index_plan import IndexPlan
from finetune.data.inputs import LOSS_MASK
from finetune.draws import StepDraws
from finetune.errors import FinetuneError
from finetune.families.family import Family
from finetune.objectives.objective import Objective, per_picture
from finetune.results import checkpoint
from finetune.training import optimizer
from finetune.training.accelerating import Accelerator, Steps
from finetune.training.average import PowerAverages
from finetune.training.schedule import learning_rate
from finetune.training.step import Asked, Step

CANARY_STEPS = 10  # after which every trainable tensor must have had a gradient and moved
MOST_SKIPPED = 20  # updates that an fp16 scaler may drop, besides one in twenty


@dataclass
class Training:
    """What a step reads and changes. The state that outlives a step: `trainable`, `optimizer`, `shadow`."""

    job: Job
    accelerator: Accelerator
    family: Family
    module: nn.Module  # Step, perhaps wrapped
    trainable: dict[str, nn.Parameter]
    optimizer: Steps
    objective: Objective
    plan: IndexPlan
    encoded: Encoded
    shadow: dict[str, Tensor] | None  # averaged weights, by the names of `trainable`
    averages: PowerAverages | None = None  # of which one is made after the run
    settle: Callable[[int], None] = lambda step: None  # what the method does after an update
    ring: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)  # step, loss, dropped: on the device until looked at
    had_gradient: dict[str, Tensor] | None = None  # for the canary: whether each tensor has had one that is not 0
    skipped: int = 0  # updates that an fp16 scaler dropped

    @cached_property
    def step(self) -> Step:
        """The module without what wraps it; to find it, all modules are walked."""
        return cast(Step, self.accelerator.unwrap_model(self.module))

    def state(self) -> checkpoint.State:
        out: checkpoint.State = {f"trainable/{n}": p for n, p in self.trainable.items()}
        out |= {f"optimizer/{n}": v for n, v in optimizer.state(self.inner, list(self.trainable)).items()}
        if self.shadow:
            out |= {f"ema/{n}": v for n, v in self.shadow.items()}
        if self.averages:
            out |= {f"averages/{n}": v for n, v in self.averages.state().items()}
        return out

    @torch.no_grad()
    def restore(self, saved: checkpoint.State) -> None:
        for name, parameter in self.trainable.items():
            parameter.copy_(saved[f"trainable/{name}"])
        optimizer.restore(self.inner, list(self.trainable), checkpoint.under(saved, "optimizer/"))
        for name, average in (self.shadow or {}).items():
            average.copy_(saved[f"ema/{name}"])
        if self.averages:
            self.averages.restore(checkpoint.under(saved, "averages/"))

    def release(self) -> None:
        """Lets go of all that trained, so that its memory is free for what comes after."""
        self.inner.state.clear()
        self.inner.param_groups.clear()
        self.__dict__.pop("step", None)
        self.module, self.trainable, self.shadow, self.averages, self.settle = nn.Identity(), {}, None, None, lambda step: None

    @property
    def inner(self) -> torch.optim.Optimizer:
        return cast(torch.optim.Optimizer, getattr(self.optimizer, "optimizer", self.optimizer))


def draws(run: Training, step: int) -> Callable[[Sequence[int]], StepDraws]:
    """What is drawn at a step for slots of the global batch."""
    return lambda slots: StepDraws(run.job.run.seed, step, slots, run.plan.batch)


def batches(run: Training, step: int) -> list[tuple[int, Batch]]:
    """This process's micro-batches, each with its first slot; one that holds pictures of several sizes is as many."""
    job, accelerator = run.job, run.accelerator
    micro = run.plan.micro_batches(step, job.optim.batch, accelerator.process_index, accelerator.num_processes)
    out = []
    for slots in micro:
        same_size = run.encoded.batches(slots, draws(run, step), job.data.caption_dropout)
        out += [(slots[0].slot, batch) for batch in same_size]
    return out


def loss_sum(run: Training, batch: Batch, step: int) -> Tensor:
    """Sum over the micro-batch of each picture's weighted mean error, of its masked part if it has a mask; the caller divides by the
    weight of the whole step."""
    batch = batch.to(run.accelerator.device)
    error = run.objective(Asked(run.module, run.step, batch), batch, draws(run, step)(batch.slots))
    return (per_picture(error, batch.columns.get(LOSS_MASK)) * batch.weights).sum()


def gradient(run: Training, step: int) -> Tensor:
    """Adds the step's gradient up over micro-batches; returns this process's share of the loss, on the device."""
    accelerator, job, total = run.accelerator, run.job, run.plan.total_weight(step)
    share = torch.zeros((), device=accelerator.device)
    micro_batches = batches(run, step)
    for i, (slot, batch) in enumerate(micro_batches):
        if job.method.dropout:
            torch.manual_seed(randomness.number(job.run.seed, "adapter dropout", step, slot, i))
        last = i + 1 == len(micro_batches)
        with nullcontext() if last else accelerator.no_sync(run.module):
            loss = loss_sum(run, batch, step) / total
            # DDP averages over processes; the loss is a sum.
            accelerator.backward(loss * accelerator.num_processes)
        share += loss.detach()
    return share


def update(run: Training, step: int) -> Tensor:
    """Clips once, steps, averages; returns 1. where a non-finite gradient made the step do nothing."""
    job = run.job
    optimizer.set_rate(run.inner, learning_rate(job.optim, step), step / job.optim.steps)
    norm = run.accelerator.clip_grad_norm_(list(run.trainable.values()), job.optim.max_grad_norm)
    if run.accelerator.scaler is None:
        dropped = optimizer.guard(run.inner, norm)
    else:
        dropped = (~torch.isfinite(norm)).float()  # the scaler skips such a step itself
    if run.had_gradient is not None:
        for name, had in run.had_gradient.items():
            if (p := run.trainable[name]).grad is not None:
                had |= (p.grad != 0).any() & (dropped == 0)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.settle(step)
    if run.shadow and job.optim.ema:
        optimizer.ema_update(list(run.shadow.values()), list(run.trainable.values()), job.optim.ema, step)
    if run.averages:
        run.averages.update(run.trainable, step)
    return dropped


def mean_loss(run: Training) -> float:
    """The one place where the host reads the device: mean loss since the last look.

    Raises:
        FinetuneError: a loss or gradient was not finite, with its step and pictures.
    """
    steps = [s for s, _, _ in run.ring]
    losses = run.accelerator.reduce(torch.stack([loss for _, loss, _ in run.ring]), "sum").cpu()
    dropped = run.accelerator.reduce(torch.stack([flag for _, _, flag in run.ring]), "sum").cpu()
    run.ring.clear()
    bad = [s for s, loss, d in zip(steps, losses, dropped, strict=True) if d > 0 or not torch.isfinite(loss)]
    if bad and run.accelerator.scaler is not None:
        run.skipped += len(bad)  # the scaler looks for its scale: normal at first, and then now and again
        if run.skipped <= MOST_SKIPPED + steps[-1] // 20:
            return float(losses[torch.isfinite(losses)].mean())
    if bad:
        names = sorted({run.encoded.samples[s.sample].name for s in run.plan.slots(bad[0]) if s.weight})
        raise FinetuneError(
            f"the loss or its gradient was not finite at step {bad[0] + 1}, with {', '.join(names)}; nothing of it went into the weights",
            "lower --lr, or look at these pictures; the last good checkpoint stays",
        )
    return float(losses.mean())


def check_moved(run: Training, before: dict[str, Tensor]) -> None:
    """The learning canary: every tensor of `before` has had a gradient, and of each group something has moved. A single tensor may not:
    at a rate of 1e-6, weights near 1 have no next number that is near enough.

    Raises:
        FinetuneError: with the names of the tensors that stand still.
    """
    had = run.had_gradient or {}
    still = [n for n in before if not bool(had[n])]
    for group in run.inner.param_groups:
        members = {id(p) for p in group["params"]}
        names = [n for n in before if id(run.trainable[n]) in members]
        if all(torch.equal(run.trainable[n].detach(), before[n]) for n in names):
            still += names
    if still:
        raise FinetuneError(
            f"{len(set(still))} of {len(run.trainable)} trainable tensors had no gradient or did not move in {CANARY_STEPS} steps: "
            + still[0],
            "raise --lr; if that does not help, this is a bug worth reporting",
        )


def watched(run: Training, first: int) -> dict[str, Tensor]:
    """What the canary looks at, as it is before: all that still trains, if there are steps enough to tell."""
    if run.job.optim.steps - first < CANARY_STEPS:
        return {}
    names = {id(p): n for n, p in run.trainable.items()}
    before: dict[str, Tensor] = {}
    for group in run.inner.param_groups:
        if not optimizer.over(group, first / run.job.optim.steps):
            before |= {names[id(p)]: p.detach().clone() for p in group["params"]}
    return before


def loop(
    run: Training,
    first: int,
    stopping: Callable[[], bool],
    log: Callable[[int, float], None],
    look_at: Callable[[int], bool],
    save: Callable[[int], None],
) -> int:
    """Trains from `first` to the job's last step, or until `stopping` or `look_at` says so; returns the number of steps done."""
    job = run.job
    before = watched(run, first)
    run.had_gradient = {n: torch.zeros((), dtype=torch.bool, device=p.device) for n, p in before.items()}
    run.module.train()
    for step in range(first, job.optim.steps):
        loss = gradient(run, step)
        run.ring.append((step, loss, update(run, step)))
        done, stop = step + 1, stopping()
        end = done == job.optim.steps
        if done - first == CANARY_STEPS:
            check_moved(run, before)
            before, run.had_gradient = {}, None
        if stop or end or done % job.run.log_every == 0 or done % job.run.checkpoint_every == 0:
            log(done, mean_loss(run))
        stop = stop or look_at(done)
        if stop or end or done % job.run.checkpoint_every == 0:
            save(done)
        if stop or end:
            return done
    return first
