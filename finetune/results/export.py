"""What a finished run hands over: an adapter, new tokens' embeddings, a whole model or an autoencoder, and the model card."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from finetune import files
from finetune.adapters import decoder, dense, embedding, model
from finetune.adapters.card import card, card_path
from finetune.adapters.compatibility import Reading, file_readings, readings, sentences, traits
from finetune.adapters.contract import KEY, Contract, Kind, Labels, file_metadata, for_rank, of_data
from finetune.adapters.convert import silent
from finetune.adapters.keys import sort_keys
from finetune.adapters.layouts import Place, usual
from finetune.adapters.weights import Weights
from finetune.adapters.write import DTYPES, export
from finetune.config.adapter_types import ROWS
from finetune.config.job import Job
from finetune.data.captions import tags
from finetune.data.sample import Sample
from finetune.errors import ConfigError
from finetune.families import single_file
from finetune.families.catalogue import of_name
from finetune.families.family import Family
from finetune.families.names.readers import LOW_RANK
from finetune.header import header_of, tensors_file
from finetune.methods import adapter, textual_inversion
from finetune.methods.adapter import RankAlpha, Start
from finetune.methods.layer import Weighted
from finetune.methods.trainees import AUTOENCODER, DENOISER, Trainees
from finetune.methods.ways import Noun
from finetune.results import record
from finetune.run_folder import RunFolder


def layout(job: Job, family: Family) -> str:
    """The one that was asked for; the family's own, but for types that only kohya's with LyCORIS's keys can hold."""
    form = job.run.format
    if form == "full":
        return "kohya"
    if form not in ("auto", "svd"):
        return form
    return usual(family.spec.names, file_kind(job) if job.method.adapts else "lora")


def file_kind(job: Job) -> str:
    """The kind of weights that an adapter's file will hold."""
    return {"full": "full", "svd": "lora"}.get(job.run.format, ROWS[job.method.kind].file)


def check_formats(trainees: Trainees) -> None:
    """So that what no file could hold is refused before anything is loaded.

    Raises:
        ConfigError: a layer has no name in the layout, or there is no such file for the family.
    """
    job, family = trainees.job, trainees.family
    spec = family.spec
    if job.run.format == "single" and not spec.single_file:
        raise ConfigError(f"--format single: there is none for {spec.name}", "--format diffusers writes a folder")
    if job.run.format == "single" and job.run.sample_prompt and (why := single_file.undrawable(family.source)):
        raise ConfigError(
            f"--sample-prompt: the last pictures are drawn from the written file, and {why}", "--format diffusers writes a folder"
        )
    if (whole := trainees.of("model")) and job.run.format != "single":
        target = RunFolder(job.run.folder).model(job.run.name, job.run.name)
        model.check_place_of_model(family.source, target, [trainees.places[trainee.part] for trainee in whole])
    if trainees.of("decoder"):
        folder = RunFolder(job.run.folder)
        if (place := folder.autoencoder(job.run.name)) in folder.folders:
            raise ConfigError(f"--name {job.run.name}: is what a run calls another of its folders", "choose another")
        decoder.check_folder(place)
    if trainees.of("adapter"):
        check_layout(job, family, trainees.layers)


def check_layout(job: Job, family: Family, layers: list[str]) -> None:
    """Raises:
    ConfigError: the file's layout cannot hold what would be learned.
    """
    form, kind, m = layout(job, family), file_kind(job), job.method
    if form == "kohya" and (lost := family.spec.names.unnamed(layers, plain=kind == "lora")):
        raise ConfigError(f"--format kohya: has no name for {lost}", "--format diffusers has one")
    if form != "kohya" and kind not in LOW_RANK:
        raise ConfigError(f"--format {form}: holds LoRA and DoRA, and no {m.kind}", "--format kohya, whose keys are LyCORIS's for it")
    if form == "peft" and m.text_encoder:
        raise ConfigError("--format peft: a folder holds one network, and the text encoder trains too", "--format kohya or diffusers")
    if m.init in adapter.FROM_BASE and family.dtype != torch.float32:
        hint = "--precision no"
        raise ConfigError(f"method.init {m.init}: takes a part out of the base's weights, which half precision would round away", hint)


def notes(trainees: Trainees) -> list[str]:
    """What should be said of a run before it is one."""
    job, family, o = trainees.job, trainees.family, trainees.job.objective
    notes = _file_notes(job, family, trainees.layers) if trainees.of("adapter") else []
    if o.zero_terminal_snr and o.weighting != "uniform":
        notes.append(f"note: objective.weighting {o.weighting} gives pure noise no weight, which zero terminal SNR is there to learn from")
    return notes


def _file_notes(job: Job, family: Family, layers: Sequence[str]) -> list[str]:
    """Of the file of an adapter that changes these layers of the denoiser."""
    row = ROWS[job.method.kind]
    notes = [f"note: {row.note}"] if row.note and file_kind(job) == row.file else []
    notes += [f"note: read by {sentence}" for sentence in sentences(_readings(job, family, layers), warnings=True)]
    if job.run.format == "full":
        notes.append(f"note: whole differences of {len(layers)} layers: {_difference_bytes(job, family, layers) / 1e6:.0f} MB")
    elif file_kind(job) == "dora":
        notes.append("note: --format full writes whole differences, which all that read kohya's layout read exactly; svd a LoRA near it")
    return notes


def _readings(job: Job, family: Family, layers: Sequence[str]) -> list[Reading]:
    names, ranks = family.spec.names, {job.method.rank, *job.method.rank_pattern.values()}
    return readings(names, traits(names, layout(job, family), [file_kind(job)], layers, ranks, more=False))


def _difference_bytes(job: Job, family: Family, layers: Sequence[str]) -> int:
    net = family.parts.skeleton(family.spec.denoiser)
    numbers = sum(cast(Weighted, net.get_submodule(name)).weight.numel() for name in layers)
    return numbers * DTYPES[job.run.save_dtype].itemsize


def contract(
    job: Job, family: Family, base_sha: str, side: int, start: Mapping[str, Start] | None = None, steps_done: int | None = None
) -> Contract:
    """`base_sha` is the denoiser's fingerprint, `side` the training square in pixels; `start` is what the run went on from."""
    where, m = family.source, job.method
    trained: list[RankAlpha] = []
    for layers in (start or {}).values():
        trained += [learned.size for learned in layers.values()]
    usual = max(trained, key=trained.count) if trained else RankAlpha(m.rank, float(m.alpha or m.rank))
    steps, guidance = family.inference()
    return Contract(
        base=where.id,
        base_revision=where.revision,
        base_sha256=base_sha,
        family=family.spec.name,
        prediction_type=family.schedule().prediction_type,
        resolution=side,
        trigger=job.trigger,
        guidance=guidance,
        steps=steps,
        sampler=family.spec.sampler,
        rank=usual.rank if m.adapts else 0,
        training_alpha=usual.alpha if m.adapts else 0.0,
        trained_steps=steps_done or job.optim.steps,
        adapter=m.kind if m.adapts else None,
        zero_terminal_snr=where.zero_snr,
        timestep_spacing="trailing" if where.zero_snr else None,
        guidance_rescale=where.guidance_rescale if where.zero_snr else 0.0,
    )


def of_pictures(job: Job, train: Sequence[Sample]) -> dict[str, str]:
    """What the files' headers say of the data; of its captions only with run.publish_tags."""
    number = round(sum(s.times for s in train))
    if not job.run.publish_tags:
        return of_data(number, None)
    counts = Counter[str]()
    for sample in train:
        counts.update(tags(sample.caption.lower()))
    return of_data(number, counts)


@dataclass(frozen=True)
class Outgoing:
    """What the writers of all kinds of files know: what trained, in which folder, how it must be used, what headers say of the data."""

    trainees: Trainees
    folder: RunFolder
    contract: Contract
    data: Mapping[str, str]
    say: Callable[[str], None] = silent

    def facts(self, kind: Kind, name: str) -> dict[str, str]:
        """A file's header."""
        job, family = self.trainees.job, self.trainees.family
        theirs = lycoris(job) if self.trainees.of("adapter") else None
        edition = family.edition
        labels = Labels(edition.architecture, edition.version, family.spec.names.codes, edition.v2)
        return {**file_metadata(kind, self.contract, name, labels, family.source.licence, theirs), **self.data}

    def write(self, nets: Mapping[str, nn.Module], name: str) -> dict[str, Path]:
        """The files of a run, by kind: `adapter`, `model`, `vae` with `vae_folder`, `embedding` (`embedding_2` of a second new token and
        so on)."""
        written: dict[str, Path] = {}
        for noun, writer in WRITERS.items():
            if self.trainees.of(noun):
                written |= writer(self, nets, name)
        return written


def lycoris(job: Job) -> Mapping[str, str] | None:
    """LyCORIS's arguments for what the file holds; None where it is a LoRA."""
    row, kind = ROWS[job.method.kind], file_kind(job)
    if kind == row.file:
        return row.lycoris
    return {"algo": "full"} if kind == "full" else None


def write_adapter(out: Outgoing, nets: Mapping[str, nn.Module], name: str) -> dict[str, Path]:
    """One file, of all networks that were adapted."""
    job, family = out.trainees.job, out.trainees.family
    spec, form = family.spec, layout(job, family)
    path = out.folder.peft(name) if form == "peft" else out.folder.weights(name)
    modules: dict[Place, Weights] = {}
    base: dict[Place, torch.Tensor] = {}  # the base's weights
    for trainee in out.trainees.of("adapter"):
        net, part = nets[trainee.part], trainee.part
        layers = adapter.layers(net)
        for module, change in adapter.result(net, job.method.kind).items():
            here = (spec.denoiser, module) if part == DENOISER else (part, spec.names.text[part].completed(module))
            weights = Weights(change.kind, change.tensors, None)
            # Of LoKr's whole matrices there is no rank; LyCORIS asks for an alpha all the same, and takes it for 1.
            modules[here] = replace(weights, alpha=None if weights.kind == "full" else float(weights.rank or 1))
            base[here] = layers[module].get_base_layer().weight
    if job.run.format in ("full", "svd"):
        modules = dense.full(modules, lambda part, module: base[part, module])
    if job.run.format == "svd":
        modules, missed = dense.svd(modules, job.method.rank)
        out.say(f"a LoRA of rank {job.method.rank} misses {missed:.2%} of the change")
    ranks = [w.rank for w in modules.values()]
    # The usual rank, which is not that of training where the file also holds how it began.
    facts = for_rank(out.facts("adapter", name), max(ranks, key=ranks.count))
    export(modules, path, form, spec.name, job.run.save_dtype, facts, family.source.id)
    return {"adapter": path}


def write_model(out: Outgoing, nets: Mapping[str, nn.Module], name: str) -> dict[str, Path]:
    """The base with what trained in its place, as a folder or one file."""
    job, family, places = out.trainees.job, out.trainees.family, out.trainees.places
    trained = {places[trainee.part]: nets[trainee.part] for trainee in out.trainees.of("model")}
    if job.run.format == "single":
        whole = trained | {part: family.parts.load(part) for part in family.spec.parts if part not in trained}
        path = out.folder.weights(name)
        model.write_single(family.source, path, whole, job.run.save_dtype, out.facts("model", name))
        return {"model": path}
    path = out.folder.model(name, job.run.name)
    schedule = family.source.config("scheduler")
    if family.source.zero_snr:  # the base's own sampler may not know how to begin at pure noise
        schedule |= {"_class_name": family.spec.samplers[family.spec.sampler]}
    model.write(family.source, path, trained, job.run.save_dtype, asdict(out.contract), schedule)
    return {"model": path}


def write_embeddings(out: Outgoing, nets: Mapping[str, nn.Module], name: str) -> dict[str, Path]:
    """A file for each new token, with its rows for every text encoder."""
    job, keys = out.trainees.job, out.trainees.family.spec.names.embedding_keys
    tokens = {token: job.method.vectors for token in job.method.new_tokens}
    rows = {trainee.part: textual_inversion.result(nets[trainee.part], tokens) for trainee in out.trainees.of("embedding")}
    alone = len(tokens) == 1 and len(out.trainees.of("embedding")) == len(out.trainees.each)
    written: dict[str, Path] = {}
    for i, token in enumerate(tokens):
        path = out.folder.weights(name) if alone else out.folder.embedding(name, embedding.slug(token))
        if path in written.values():
            path = out.folder.embedding(name, embedding.slug(token), i)
        mine = {key: rows[part][token] for part, key in keys.items()}
        embedding.write(path, token, mine, job.run.save_dtype, out.facts("embedding", name))
        written["embedding" if i == 0 else f"embedding_{i + 1}"] = path
    return written


def write_decoder(out: Outgoing, nets: Mapping[str, nn.Module], name: str) -> dict[str, Path]:
    """The autoencoder with its decoder: one file in the original layout, and what the run ended with as a folder of diffusers too."""
    source, net = out.trainees.family.source, nets[AUTOENCODER]
    written = {"vae": out.folder.weights(name)}
    decoder.write_original(written["vae"], net, out.facts("decoder", name))
    if name == out.trainees.job.run.name:
        written["vae_folder"] = out.folder.autoencoder(name)
        facts = {k: v for k, v in out.facts("decoder", name).items() if k in ("format", KEY)}  # its names are not the original ones
        decoder.write_folder(written["vae_folder"], net, source.config(AUTOENCODER), facts)
    return written


WRITERS: dict[Noun, Callable[[Outgoing, Mapping[str, nn.Module], str], dict[str, Path]]] = {
    "adapter": write_adapter,
    "model": write_model,
    "embedding": write_embeddings,
    "decoder": write_decoder,
}


def _adapter_readings(path: Path, family: str) -> list[Reading]:
    """What each tool makes of a written file, from its header alone."""
    top = header_of(tensors_file(path))
    return file_readings(sort_keys(top.shapes, family), top)


def write_card(
    out: Path,
    job: Job,
    contract: Contract,
    written: Mapping[str, Path],
    family: Family,
    facts: Mapping[str, object],
    samples: Sequence[tuple[str, str]],
) -> None:
    """The model card beside what was written; its table shows the job's settings and `facts`."""
    m = job.method
    what = {
        "adapter, rank, alpha, targets": f"{m.kind}, {contract.rank}, {contract.training_alpha:g}, {m.targets}" if m.adapts else "",
        "text encoder trained": "yes" if m.text_encoder else "",
        "new tokens": f"{', '.join(m.new_tokens)}; {m.vectors} vectors each" if m.new_tokens else "",
        "prior preservation": f"weight {job.subject.prior_weight:g}" if job.subject.prior else "",
        "autoencoder": job.model.vae.name if job.model.vae else "",
        "caption dropout": "" if "vae" in written else f"{job.data.caption_dropout:g}",
    }
    settings = {k: v for k, v in what.items() if v} | {
        "steps": job.optim.steps,
        "learning rate, schedule": f"{job.optim.lr:g}, {job.optim.schedule}",
        "resolution": contract.resolution,
        "seed": job.run.seed,
        "versions": ", ".join(f"{k} {v}" for k, v in record.versions().items()),
    }
    readers = sentences(_adapter_readings(written["adapter"], contract.family)) if "adapter" in written else []
    rows = of_name(contract.family).names.embedding_keys
    names = {kind: path.name for kind, path in written.items()}
    repaints = family.edition.pipeline if family.repaints else ""
    text = card(contract, job.run.name, names, {**facts, **settings}, family.source.licence, samples, readers, rows, repaints)
    files.write_text(card_path(out, job.run.name), text)
