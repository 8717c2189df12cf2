"""What a finished run says of itself in plain words: whether it learned, where to look, and which lines go on from here. Torch-free."""

import shlex
from collections.abc import Iterator

from finetune.config import Job
from finetune.results.summary import Measure, RoundTrip, Summary, Verdict, dropped
from finetune.run_folder import RunFolder

ASIDE = 0.25  # of the pictures are held out by the line that a run names which cannot tell
# With fewer held-out pictures even a clear success is seldom told apart: a LoRA of the embedded base that lowers the loss of twelve
# pictures by 4 % is told apart by 17 % of all pairs of them, by 63 % of all fours and by 99 % of all fives.
FEW = 5
# Of the base's loss: the least that the one decimal of a percentage shows. The same noises before and after leave intervals so narrow
# that any nudge would pass for learning: two steps at a rate of 1e-8 surely lower the loss of 100 pictures, by 4e-8 of itself.
LEAST = 1e-3


def verdict(measure: Measure | None) -> Verdict:
    """What a change of the held-out loss, with its 95 % interval over pictures, says beside the loss of the base."""
    if measure is None:
        return "not measured"
    if abs(measure.mean) < LEAST * measure.base:
        return "no difference"
    if measure.high is not None and measure.high < 0:
        return "learned"
    if measure.low is not None and measure.low > 0:
        return "worse"
    return "no difference"


def lines(job: Job, summary: Summary) -> Iterator[str]:
    """The sheet of a run that ended with this summary, the verdict on it, and lines to copy."""
    if summary.sheet:
        yield f"look: {summary.sheet} shows {_on_sheet(summary)}"
    yield from _measured(job, summary, summary.measure) if summary.measure else _unmeasured(job, summary)
    yield f"draw: {shlex.join(_drawing(job, summary))}"
    if dropped(job):
        yield "its checkpoints, which are large, were removed: --steps cannot continue it (--set run.keep_finished=true keeps them)"
    else:
        yield f"continue: {shlex.join([*_again(job, summary), '--steps', str(2 * summary.steps)])}"


SAID = {
    "learned": "learned",
    "no difference": "not told apart from the base",
    "worse": "worse than the base",
}


def _measured(job: Job, summary: Summary, measure: Measure) -> Iterator[str]:
    base, count = measure.base, measure.pictures
    shown = "one picture" if count == 1 else f"{count} pictures"
    percent = 100 * measure.mean / base
    sure = "one picture has no interval"
    if measure.low is not None and measure.high is not None:
        sure = f"95 % between {100 * measure.low / base:+.1f} and {100 * measure.high / base:+.1f} %"
    what = "round-trip error" if summary.round_trip else "loss"
    yield (
        f"{SAID[summary.verdict]}: on {shown} that training never saw, the {what} is {measure.loss:.4f} where the base's is "
        f"{base:.4f}, {percent:+.1f} % ({sure})"
    )
    if summary.round_trip:
        yield _decibels(summary.round_trip)
    more = ASIDE * (count + summary.pictures) > count
    if count < FEW and more and summary.verdict == "no difference":
        yield f"{shown} can seldom tell; more would: {_measuring(job, summary)}"
    best = summary.best_step
    if best is not None and best != summary.steps:
        yield f"best: step {best}, with a loss of {summary.best_held_out_loss:.4f}: {summary.written['best']}"


def _decibels(trip: RoundTrip) -> str:
    sure = "" if trip.low is None or trip.high is None else f" (95 % between {trip.low:+.2f} and {trip.high:+.2f})"
    return f"they come back with {trip.run:.2f} dB of PSNR where the base's are at {trip.base:.2f}, {trip.mean:+.2f} dB{sure}"


def _on_sheet(summary: Summary) -> str:
    if summary.round_trip:
        return "the held-out pictures that come back worst, as they are, by the base and by the result"
    return "the base's pictures beside the result's"


def _unmeasured(job: Job, summary: Summary) -> Iterator[str]:
    yield f"not measured whether it learned: none of {summary.pictures} pictures was held out"
    if summary.distinct_pictures > 1:
        yield f"measure: {_measuring(job, summary)}"


def _measuring(job: Job, summary: Summary) -> str:
    out = job.run.folder.with_name(f"{job.run.folder.name}-measured")
    return shlex.join([*_again(job, summary), "--holdout", str(ASIDE), "--out", str(out)])


def _again(job: Job, summary: Summary) -> list[str]:
    """The same run, in as many processes: its own record says all of it."""
    processes = summary.processes
    program = ["ft"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes), "-m", "finetune"]
    return [*program, job.command, "--recipe", str(RunFolder(job.run.folder).record)]


def _drawing(job: Job, summary: Summary) -> list[str]:
    """A line that draws with what was written, on the base that it was made for."""
    words = ["--base", str(summary.written.get("model") or job.model.base)]
    if vae := summary.written.get("vae") or ("model" not in summary.written and job.model.vae):  # a model has it
        words += ["--vae", str(vae)]
    for kind in summary.files:
        if kind == "adapter" or kind.startswith("embedding"):
            words += [f"--{kind.partition('_')[0]}", str(summary.written[kind])]
    return ["ft", "generate", *words, "--prompt", summary.prompt]
