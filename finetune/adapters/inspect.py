"""What an adapter file is, from its header alone; the strength of its changes by block when asked."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.adapters import keys
from finetune.adapters.compatibility import Reading, file_readings, sentences
from finetune.adapters.contract import Contract
from finetune.adapters.problems import problems
from finetune.adapters.strength import alphas_of
from finetune.errors import DataError, line
from finetune.families.names.text_encoders import bare
from finetune.header import Header, header_of, tensors_file

BAR = 24  # characters of the longest bar
MOST_TEXT = 1000  # letters of a text that a header says


@dataclass
class Inspection:
    path: str
    layout: str
    family: str | None
    kinds: dict[str, int]  # modules of each
    parts: dict[str, int]
    ranks: dict[int, int]  # rank -> modules
    alphas: str  # in words
    dtypes: dict[str, int]
    bytes: int
    trigger: str | None
    base: str | None
    contract: dict[str, Any] | None
    title: str | None
    embeddings: dict[str, int] = field(default_factory=dict)  # that came along: token -> vectors
    readers: list[dict[str, str]] = field(default_factory=list)  # what each tool makes of it: tool, how, says
    norms: dict[str, float] | None = None  # block -> Frobenius norm of the change of weights
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        contract = self.contract or {}
        unit = "vectors" if self.layout == "embedding" else "modules"
        ranks = [f"{rank} in {count} modules" for rank, count in self.ranks.items()]
        rows: list[tuple[str, str]] = [
            ("file", f"{self.path} ({self.bytes / 1e6:.2f} MB, tensors: {_counts(self.dtypes)})"),
            ("method", f"{_counts(self.kinds)}; {unit}: {_counts(self.parts)}"),
            ("layout", self.layout),
            ("family", self.family or "its keys do not tell"),
            ("rank", f"{', '.join(ranks)}; {self.alphas}" if ranks else self.alphas),
            ("base", self.base or "not said"),
            ("trigger", self.trigger or "none said"),
        ]
        if contract:
            use = ("prediction_type", "sampler", "steps", "guidance", "resolution", "trained_steps", "training_alpha")
            rows.append(("use", ", ".join(f"{k} {contract[k]}" for k in use)))
        if self.embeddings:
            rows.append(("tokens", ", ".join(f"{token} ({count} vectors)" for token, count in self.embeddings.items())))
        rows += [("read by" if i == 0 else "", sentence) for i, sentence in enumerate(sentences([Reading(**r) for r in self.readers]))]
        lines = [f"{name:<9}{line(value, 400)}" for name, value in rows]
        if self.norms:
            most = max(self.norms.values()) or 1.0
            norms = {line(block, 60): n for block, n in self.norms.items()}
            width = max(map(len, norms))
            lines += ["norms of the change, by block:"]
            lines += [f"  {block:<{width}} {'█' * round(BAR * n / most):<{BAR}} {n:.4g}" for block, n in norms.items()]
        return "\n".join([*lines, *(f"problem  {line(p, 400)}" for p in self.problems)])

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def inspect(path: Path, norms: bool = False) -> Inspection:
    """Raises:
    DataError: no readable header. What is wrong beyond that is listed in `problems`.
    """
    file = tensors_file(path)
    top = header_of(file)
    contract = Contract.of(top.metadata)
    contents = keys.sort_keys(top.shapes, contract.family if contract else None)
    embedded = {key: shape[0] for key, shape in top.shapes.items()} if embeds(top) else {}  # vectors by key
    ranks = Counter(contents.ranks(top.shapes))
    report = Inspection(
        path=str(path),
        layout="embedding" if embedded else contents.layout,
        family=contract.family if contract else contents.family,
        kinds={"textual-inversion": len(embedded)} if embedded else dict(Counter(e.kind or "incomplete" for e in contents.entries)),
        parts=embedded or dict(Counter(e.part for e in contents.entries)),
        ranks=dict(sorted(ranks.items())),
        alphas=_alphas(path, contents, top),
        dtypes=dict(Counter(top.dtypes.values())),
        bytes=file.stat().st_size,
        trigger=_text(top.metadata.get("modelspec.trigger_phrase") or top.metadata.get("trained_words")),
        base=_text(contract.base if contract else top.metadata.get("ss_sd_model_name")),
        contract=_shown(contract) if contract else None,
        title=_text(top.metadata.get("modelspec.title")),
        embeddings={token: top.shapes[next(iter(rows.values()))][0] for token, rows in contents.embeddings.items()},
        readers=[asdict(r) for r in file_readings(contents, top)],
        problems=[] if embedded else _problems(contents, top),
    )
    if norms and not embedded and not report.problems:
        try:
            report.norms = block_norms(path)
        except DataError as e:
            report.problems.append(e.message)
    return report


def _text(text: str | None) -> str | None:
    """What a header says, as one line of at most MOST_TEXT letters."""
    return text and line(text, MOST_TEXT)


def _shown(contract: Contract) -> dict[str, Any]:
    """A contract whose texts are lines."""
    return {name: _text(value) if isinstance(value, str) else value for name, value in asdict(contract).items()}


def embeds(top: Header) -> bool:
    """Whether the file holds the rows of a new token: [vectors, D] under the keys of embedding files."""
    return bool(top.shapes) and top.shapes.keys() <= keys.EMBEDDED and all(len(s) == 2 for s in top.shapes.values())


def _alphas(path: Path, contents: keys.FileModules, top: Header) -> str:
    low_rank = [e for e in contents.entries if e.rank(top.shapes)]
    count = sum("alpha" in e.leaves for e in low_rank)
    if not low_rank:
        return "none"
    if count == len(low_rank):
        return "alpha in every module"
    if count:
        return f"alpha in {count} of {len(low_rank)} modules, strength 1 in the others"
    beside = alphas_of(path, top.metadata)
    strengths = {beside.strength(e.part, e.modules[0], e.rank(top.shapes)) for e in low_rank}
    if strengths == {None}:
        return "no alpha: every reader takes strength 1"
    shown = ", ".join(f"{s:g}" for s in sorted(s for s in strengths if s is not None))
    return f"strength {shown} from the config beside the tensors"


def _problems(contents: keys.FileModules, top: Header) -> list[str]:
    out = [f"key {k} stands in the header more than once" for k in top.twice]
    if "+" in contents.layout:
        out.append("mixed layouts: " + contents.layout)
    out += problems(contents, top)
    without_alpha = bool(contents.entries) and not any("alpha" in e.leaves for e in contents.entries)
    if without_alpha and contents.layout == "kohya" and "lora_adapter_metadata" not in top.metadata:
        out.append("no alpha: it was folded in, or its strength is lost")
    return out


def block_norms(path: Path) -> dict[str, float]:
    """Frobenius norm of the change of weights of each block. Where it depends on the base's weights (DoRA, OFT), of the low-rank part.

    Raises:
        DataError: the file cannot be read, or holds numbers that are not finite.
    """
    from finetune.adapters.read import read  # torch, which the header needs not

    squares: dict[str, float] = {}
    for (part, module), w in read(path).modules.items():
        block = ".".join(bare(module).split(".")[:2])
        if w.kind == "oft":
            continue
        if w.kind in ("lora", "dora") and "mid" not in w.tensors:  # |UD|^2 = tr(U'U DD'), without the product
            down, up = (x.float().flatten(1) for x in w.pair())
            square = float(((up.T @ up) * (down @ down.T)).sum())
        else:
            square = float(w.raw().square().sum())
        squares[f"{part}.{block}"] = squares.get(f"{part}.{block}", 0.0) + square
    return {block: max(square, 0.0) ** 0.5 for block, square in squares.items()}
