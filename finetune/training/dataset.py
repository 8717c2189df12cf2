"""What `ft data` does with a job's data, without training: check it, show it, encode it ahead."""

import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from finetune.config.job import Job
from finetune.data import captioner, check, preview
from finetune.data.check import Report
from finetune.data.crop import to_image, to_tensor
from finetune.data.encoded import Pixels, picture_jobs
from finetune.data.index_plan import SampleGroup, joined, repeated
from finetune.data.inputs import INPAINT_MASK
from finetune.data.sample import Listing, Pictures, Problem, Sample, some
from finetune.errors import ConfigError, DataError
from finetune.evaluation.round_trip import psnr
from finetune.families import autoencoder, load
from finetune.families.family import Family
from finetune.preparation import base, data
from finetune.preparation import work as works
from finetune.preparation.encoding import Crew, Phase, encode
from finetune.run_folder import RunFolder
from finetune.sampling import draw
from finetune.training import device

ROUND_TRIP = 20.0  # dB of PSNR below which a picture is named: a base cannot draw what its autoencoder cannot hold
WORST = 8


def _sides(job: Job, found: Listing) -> Pictures | None:
    """The sides of the data, where nothing keeps a run from beginning."""
    if found.problems:
        return None
    try:
        return data.gathered(job)
    except DataError as e:  # in a --holdout folder
        found.problems.append(Problem(str(job.data.holdout), e.message, e.hint))
        return None


def checked(job: Job, vae: str | None, phase: Phase) -> tuple[Report, Image.Image | None]:
    """Everything there is to say of a job's data; with `vae`, a base or a run of `ft vae`, a sheet of what that autoencoder holds worst.

    Raises:
        DataError, ConfigError: there is no data, or a setting does not fit the base.
    """
    family, found = base.weightless(job), data.scanned(job)
    sides = _sides(job, found)
    if sides:
        prepared = data.cut(job, family, sides, data.global_batch(job))
        sides, sizes, batch = prepared.pictures, prepared.sizes, prepared.batch
    with phase("looking at pictures", len({s.content for s in found.samples})) as tick:
        report = check.check_data(found, sides, job.trigger, tick)
    report.facts = {"pictures": len(found.samples), "problems": len(found.problems), "base": family.source.id} | report.facts
    if sides:
        epoch = SampleGroup(sides.train, 0, batch, 0)
        _add_numbers(job, sides, epoch, report)
        for what, names in joined(epoch, sizes).items():
            report.add("note", what, names)
        for what, names in repeated(epoch).items():
            report.add("warning", what, names)
        _add_tokens(job, family, sides, report)
        _add_masks(data.pixels(job, family.edition.reads), sides, report)
    sheet = _round_trip(job, vae, sides, report, phase) if vae and sides else None
    report.findings.sort(key=lambda f: check.LEVELS.index(f.level))
    return report, sheet


def _add_numbers(job: Job, sides: Pictures, epoch: SampleGroup, report: Report) -> None:
    report.facts |= {
        "to_train_on": len(sides.train),
        "held_out": len(sides.held),
        "buckets": {str(size): count for size, count in sorted(Counter(s.size for s in sides.train).items())},
        "steps_per_epoch": epoch.steps,
        "fills_per_epoch": epoch.fills(0),
        "epochs": round(job.optim.steps / epoch.steps, 2),
    }


def _add_tokens(job: Job, family: Family, sides: Pictures, report: Report) -> None:
    room, counts = family.room, {}
    try:
        works.add_tokens(job, family, sides.captions)
    except ConfigError as e:
        report.add("error", e.message, ["captions"])
    for s in (*sides.train, *sides.held):
        counts[s.name] = max(family.tokens(c) for c in s.captions)
    report.facts["tokens"] = {"most": max(counts.values()), "mean": round(sum(counts.values()) / len(counts), 1), "read": room}
    for name, count in counts.items():
        if count > room:
            report.add("warning", f"a caption of {count} tokens is cut to {room}", [name])


def _add_masks(shown: Pixels, sides: Pictures, report: Report) -> None:
    """Pictures whose own inpainting mask would end a run when it is encoded."""
    wrong: dict[str, list[str]] = {}
    for samples, count in ((sides.train, shown.augment.count), (sides.held, 1)):
        for s in samples:
            try:
                for variant in range(count) if INPAINT_MASK in s.inputs else ():
                    shown.inpaint_mask(s, variant)
            except DataError as e:
                wrong.setdefault(e.message.replace(f"the inpainting mask of {s.name}", "its inpainting mask"), []).append(s.name)
    for what, names in wrong.items():
        report.add("error", what, names)


def _round_trip(job: Job, name: str, sides: Pictures, report: Report, phase: Phase) -> Image.Image:
    """The error of encoding and decoding, for every picture; the worst are named and shown beside what became of them."""
    where = base.tried(job, name)
    called = where.vae_id or where.id
    family = load.family(where, torch.accelerator.current_accelerator() or torch.device("cpu"))
    sizes = data.buckets(job, family)
    samples = sizes.assign(list({s.name: s for s in (*sides.train, *sides.held)}.values()), sizes.sides[:1])
    errors = {}
    with phase("encoding and decoding", len(samples)) as tick:
        for sample in samples:
            errors[sample.name], _ = _decoded(family, sample, job.data.background)
            tick()
    ranked = sorted(samples, key=lambda s: errors[s.name])
    worst = [{"file": s.name, "psnr": round(errors[s.name], 2)} for s in ranked[:WORST]]
    report.facts["autoencoder"] = {"base": called, "mean_psnr": round(sum(errors.values()) / len(errors), 2), "worst": worst}
    for sample in ranked:
        if errors[sample.name] < ROUND_TRIP:
            report.add("warning", f"the autoencoder of {called} holds it badly: {errors[sample.name]:.1f} dB", [sample.name])
    if badly := [s.name for s in ranked if errors[s.name] < ROUND_TRIP]:
        remedy = shlex.join(["ft", "vae", "--data", job.data.places[0].path, "--base", job.model.base if where.vae else name])
        report.add("note", f"its decoder can learn to draw them, and the latents stay as they are: {remedy}", badly)
        report.facts["autoencoder"]["remedy"] = remedy
    rows = [(f"{errors[s.name]:.1f} dB", _decoded(family, s, job.data.background)[1]) for s in ranked[:WORST]]
    return draw.sheet(rows, ["picture", "decoded"])


def _decoded(family: Family, sample: Sample, background: str) -> tuple[float, list[Image.Image]]:
    """Peak signal to noise of one picture's round trip in dB; the picture and what came back."""
    before = Pixels(background).prepared(sample).image
    pixels = to_tensor(before)[None]
    after = autoencoder.decode(family.parts.load("vae"), family.encode(pixels)[0])
    return float(psnr(pixels, after)), [before, to_image(after[0])]


def lines(report: Report) -> list[str]:
    """A report as a person reads it."""
    f = report.facts
    sides = f": {f['to_train_on']} to train on, {f['held_out']} held out" if "held_out" in f else ""
    lines = [f"{f['pictures']} pictures{sides}"]
    if "buckets" in f:
        lines.append("buckets: " + ", ".join(f"{size}: {count}" for size, count in f["buckets"].items()))
        epoch = f"an epoch: {f['steps_per_epoch']} steps, {f['fills_per_epoch']} draws to fill batches"
        lines.append(f"{epoch}; the run is {f['epochs']} epochs")
        tokens = f["tokens"]
        counts = f"{tokens['mean']} tokens on average, {tokens['most']} at most, of {tokens['read']} that are read"
        lines.append(f"captions: {f['captions']} different; {counts}")
    if "trigger" in f:
        lines.append(f"trigger {f['trigger']['word']!r}: in {f['trigger']['captions']} captions")
    if f.get("most_frequent_tags"):
        lines.append("most frequent: " + ", ".join(f"{tag[:40]} {n}" for tag, n in f["most_frequent_tags"].items()))
    if "autoencoder" in f:
        lines.append(f"autoencoder of {f['autoencoder']['base']}: {f['autoencoder']['mean_psnr']} dB on average")
    for level in check.LEVELS:
        findings = [finding for finding in report.findings if finding.level == level]
        if findings:
            lines.append(f"{level}s: {report.count(level)}")
        for finding in findings:
            lines.append(f"  {some(finding.names)}: {finding.text}")
    return lines


def crops(job: Job, count: int) -> tuple[Image.Image, int]:
    """The crops of the first `count` pictures, evenly taken, and how many there are in all."""
    family = base.weightless(job)
    sides = data.cut(job, family, data.gathered(job), data.global_batch(job)).pictures
    step, shown = max(1, -(-len(sides.train) // count)), data.pixels(job, family.edition.reads)
    return preview.preview_sheet(preview.preview_cells(sides.train[::step], shown)), len(sides.train)


def encode_ahead(job: Job, phase: Phase, say: Callable[[str], None]) -> dict[str, int]:
    """Builds what a run of this job would look up; returns how many pictures (variants counted) and captions there are.

    Class pictures are not among them: a run draws those itself.
    """
    accelerator = device.accelerator_for(job)
    family = base.opened(job, accelerator.device, device.DTYPES[device.precision(job, accelerator.device)])
    pictures = data.gathered(job)
    work = works.planned(job, family, pictures, data.global_batch(job, accelerator.num_processes), accelerator.device.type)
    pictures.describe(say)
    prepared = data.cut(work.job, family, pictures, work.batch)
    prepared.describe(say)
    rank, world = accelerator.process_index, accelerator.num_processes
    ahead = RunFolder(job.run.folder).ahead  # no folder of a run: the run itself notes what it uses
    crew = Crew(phase, say, rank=rank, world=world, wait=accelerator.wait_for_everyone, note=ahead)
    _, texts = encode(work, prepared.pictures, crew)
    jobs = picture_jobs(prepared.pictures.train, data.pixels(job, work.reads), prepared.pictures.held)
    return {"pictures": sum(map(len, jobs)), "captions": len(texts)}


def caption(
    folder: Path, model: str, prompt: str | None, tokens: int, batch: int, prefix: str, overwrite: bool, phase: Phase
) -> tuple[int, int]:
    """Writes a caption beside every picture that has none; how many were written, and how many were there. No model is loaded for none."""
    todo, kept = captioner.uncaptioned(folder, overwrite)
    if not todo:
        return 0, kept
    loaded = captioner.load_captioner(model, prompt, tokens)
    with phase("captioning", len(todo)) as tick:
        return captioner.caption_folder(folder, todo, loaded, batch, prefix, overwrite, tick), kept
