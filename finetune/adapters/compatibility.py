"""Who reads which adapter file, and how well: one table, shown by `ft adapter inspect`, a run's notes, the card and docs/training.md.

The rules stand with each family's names. Torch-free.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from finetune.adapters.keys import FileModules
from finetune.families.catalogue import FAMILIES, names_of
from finetune.families.names import Names
from finetune.families.names.readers import EXACT, PART, TOOLS, UNREAD, UNTRIED, WRONG, Traits
from finetune.header import Header


@dataclass(frozen=True)
class Reading:
    tool: str
    how: str
    says: str = ""  # what is off, and by how much


def traits(names: Names, layout: str, kinds: Iterable[str], modules: Collection[str], ranks: Collection[int], more: bool) -> Traits:
    """Of a file with these modules; `more` is whether it holds changes of biases, or embeddings."""
    return Traits(layout, frozenset(kinds), any(m.startswith(names.outer) for m in modules), len(set(ranks)) > 1, more)


def readings(names: Names, traits: Traits) -> list[Reading]:
    """What each tool makes of a file of a family."""
    out = []
    for tool in TOOLS:
        rule = next((r for r in names.rules if tool in r.tools and r.holds(traits)), None)
        out.append(Reading(tool, rule.how, rule.says) if rule else Reading(tool, UNTRIED))
    return out


def file_readings(contents: FileModules, top: Header) -> list[Reading]:
    """What each tool makes of a whole file in one of the layouts that they know; of one of no known family nothing is known."""
    kinds = {e.kind for e in contents.entries}
    names = names_of(contents.family)
    if names is None or contents.layout not in ("kohya", "diffusers", "peft") or None in kinds:
        return []
    modules: list[str] = []
    for e in contents.entries:
        modules += e.modules
    more = bool(contents.embeddings) or any(e.leaves.keys() & {"diff_b", "up_bias"} for e in contents.entries)
    return readings(names, traits(names, contents.layout, [str(k) for k in kinds], modules, contents.ranks(top.shapes), more))


def sentences(rows: Collection[Reading], warnings: bool = False) -> list[str]:
    """One for all tools of which the same is to be said; `warnings` are those alone that lose something."""
    groups: dict[tuple[str, str], list[str]] = {}
    for r in rows:
        groups.setdefault((r.how, r.says), []).append(r.tool)
    order = (EXACT, WRONG, PART, UNREAD, UNTRIED)
    lines = sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    out = []
    for (how, says), tools in lines:
        if not warnings or how in (WRONG, PART) or (how == EXACT and says):
            named = " and ".join(tools) if len(tools) < 3 else ", ".join(tools)
            out.append(f"{named}: {how} ({says})" if says else f"{named}: {how}")
    return out


def table() -> str:
    """All of it in Markdown, a row for each family, layout and kind that can be written."""
    lines = ["| family | layout | file holds | exact | wrong, or in part | not read | untried |", "|---|---|---|---|---|---|---|"]
    for spec in FAMILIES:
        for layout, kinds in (("kohya", ("lora", "dora", "loha, lokr, full")), ("diffusers", ("lora", "dora")), ("peft", ("lora", "dora"))):
            for kind in kinds:
                rows = readings(spec.names, Traits(layout, frozenset(kind.split(", "))))
                by = {how: [r for r in rows if r.how == how] for how in (EXACT, WRONG, PART, UNREAD, UNTRIED)}
                lost = "; ".join(s.replace(f": {WRONG} ", " ").replace(f": {PART} ", " ") for s in sentences([*by[WRONG], *by[PART]]))
                names = [", ".join(r.tool for r in by[how]) for how in (EXACT, UNREAD, UNTRIED)]
                lines.append(f"| {spec.name} | {layout} | {kind} | {names[0]} | {lost} | {names[1]} | {names[2]} |")
    return "\n".join(lines)
