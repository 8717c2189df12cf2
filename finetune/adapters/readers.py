"""Who reads which adapter file, and how well: one table, shown by `ft adapter inspect`, a run's notes, the card and docs/training.md.

What is said of diffusers, PEFT and LyCORIS is held against these libraries by tests/test_readers.py. What is said of the others was
measured once with their own code, as a share of the file's change of the weights; `untried` is what was not. Torch-free.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from finetune.families.catalogue import FAMILIES

TOOLS = ("ComfyUI", "Forge", "A1111", "SD.Next", "InvokeAI", "sd-scripts", "LyCORIS", "SGLang", "diffusers", "PEFT")
EXACT, WRONG, PART, UNREAD, UNTRIED = "exact", "wrong", "in part", "not read", "untried"
UNETS = frozenset({"stable-diffusion", "stable-diffusion-xl"})
FLUX = frozenset({"flux"})
LOW_RANK = frozenset({"lora", "dora"})
LYCORIS = frozenset({"loha", "lokr", "full"})
OFT = frozenset({"oft"})  # LyCORIS's rotations, which other tools write: ours are written as whole differences
OUTER = ("conv_in", "conv_out", "time_embedding.", "add_embedding.")  # of a U-Net
LAST = ("norm_out.", "proj_out")  # of FLUX.1


@dataclass(frozen=True)
class Traits:
    """What of a file decides who reads it. `layout` is kohya, diffusers or peft; `kinds` are those of weights.py."""

    family: str
    layout: str
    kinds: frozenset[str]
    outer: bool = False  # it changes layers that stand outside the blocks, which some readers overlook
    mixed: bool = False  # its modules are of several ranks
    more: bool = False  # it holds changes of biases, or embeddings

    @classmethod
    def of(cls, family: str, layout: str, kinds: Iterable[str], modules: Collection[str], ranks: Collection[int], more: bool) -> "Traits":
        outer = any(m.startswith(OUTER if family in UNETS else LAST) for m in modules)
        return cls(family, layout, frozenset(kinds), outer, len(set(ranks)) > 1, more)


@dataclass(frozen=True)
class Reading:
    tool: str
    how: str
    says: str = ""  # what is off, and by how much


@dataclass(frozen=True)
class Rule:
    """What the tools make of a file with any of these kinds in one of these layouts, of one of these families."""

    tools: tuple[str, ...]
    how: str
    layouts: tuple[str, ...]
    kinds: frozenset[str] = LOW_RANK | LYCORIS | OFT
    families: frozenset[str] = UNETS | FLUX
    says: str = ""
    outer: bool = False  # holds for files that have the trait alone
    mixed: bool = False
    more: bool = False

    def holds(self, t: Traits) -> bool:
        asked = (not self.outer or t.outer) and (not self.mixed or t.mixed) and (not self.more or t.more)
        return asked and t.layout in self.layouts and t.family in self.families and bool(t.kinds & self.kinds)


DORA = frozenset({"dora"})
DIVIDES = "divides DoRA's direction by the norm of the base's weights, not of the changed ones: 11 % of the change is off"
AXIS = "takes DoRA's norms along the other axis: 7 to 9 times the whole change"
DROPS = "leaves DoRA's norms out"
THIRD = "maps a third of these keys: 67 to 75 % of the effect is lost"
SWAPS = "but 9 % off where files are swapped in place (hotswap)"
BOTH = ("ComfyUI", "Forge")

# The first rule that holds is what is said; of a tool without one, nothing is known.
RULES = (
    Rule(("diffusers",), UNREAD, ("kohya",), more=True, says="refuses changes of biases, and embeddings beside an adapter"),
    Rule(("PEFT",), UNREAD, ("kohya", "diffusers"), says="reads folders of its own layout"),
    Rule(TOOLS, UNTRIED, ("kohya",), more=True),
    Rule(("LyCORIS",), EXACT, ("kohya",), OFT, UNETS),
    Rule(("diffusers",), UNREAD, ("kohya",), OFT, says="reads LoRA and DoRA alone"),
    Rule(TOOLS, UNTRIED, ("kohya",), OFT),
    Rule(("diffusers",), UNREAD, ("peft",), says="reads files, not folders of PEFT's"),
    # DoRA
    Rule(BOTH, WRONG, ("kohya",), DORA, says=DIVIDES),
    Rule(("InvokeAI",), UNREAD, ("kohya",), DORA, FLUX, "knows no key of the kind lycoris_"),
    Rule(("sd-scripts",), UNREAD, ("kohya",), DORA, FLUX, "knows no key of the kind lycoris_"),
    Rule(("InvokeAI", "A1111"), WRONG, ("kohya",), DORA, UNETS, AXIS),
    Rule(("sd-scripts",), WRONG, ("kohya",), DORA, UNETS, DROPS),
    Rule(("diffusers",), WRONG, ("kohya",), DORA, UNETS, f"{DROPS} in this layout"),
    Rule(("SD.Next", "LyCORIS"), EXACT, ("kohya",), DORA),
    Rule(("ComfyUI",), WRONG, ("diffusers",), DORA, FLUX, f"{DROPS}: 20 % of the change is off"),
    # U-Nets in kohya's layout
    Rule(("sd-scripts",), PART, ("kohya",), families=UNETS, outer=True, says="leaves conv_in, conv_out, time and label embeddings out"),
    Rule(("diffusers",), PART, ("kohya",), frozenset({"lora"}), FLUX, "leaves the last layers, norm_out and proj_out, out", outer=True),
    Rule(("diffusers",), EXACT, ("kohya",), frozenset({"lora"}), UNETS, SWAPS, mixed=True),
    Rule(("diffusers",), EXACT, ("kohya",), frozenset({"lora"})),
    Rule(("diffusers",), UNREAD, ("kohya",), LYCORIS | DORA, says="reads LoRA and DoRA alone"),
    Rule((*BOTH, "SD.Next", "InvokeAI", "sd-scripts", "LyCORIS"), EXACT, ("kohya",), families=UNETS),
    # FLUX.1 in kohya's layout: LoRA under the original names, other kinds as lycoris_ and diffusers' names
    Rule(("InvokeAI", "sd-scripts"), UNREAD, ("kohya",), LYCORIS, FLUX, "knows no key of the kind lycoris_"),
    Rule((*BOTH, "SD.Next", "LyCORIS"), EXACT, ("kohya",), LYCORIS, FLUX),
    Rule(("LyCORIS",), UNREAD, ("kohya",), families=FLUX, says="knows the original model's names by another implementation alone"),
    Rule((*BOTH, "SD.Next", "InvokeAI", "sd-scripts"), EXACT, ("kohya",), frozenset({"lora"}), FLUX),
    # diffusers' and PEFT's layouts
    Rule(("diffusers",), EXACT, ("diffusers",), LOW_RANK),
    Rule(("PEFT",), EXACT, ("peft",), LOW_RANK),
    Rule(BOTH, PART, ("diffusers", "peft"), LOW_RANK, UNETS, THIRD),
    Rule(("InvokeAI",), UNREAD, ("diffusers", "peft"), LOW_RANK, UNETS, "knows kohya's keys alone for these families"),
    Rule(("LyCORIS",), UNREAD, ("diffusers", "peft"), LOW_RANK, says="loads no module of it, and says nothing"),
    Rule((*BOTH, "SD.Next", "InvokeAI", "SGLang"), EXACT, ("diffusers",), frozenset({"lora"}), FLUX),
)  # fmt: skip


def readings(traits: Traits) -> list[Reading]:
    """What each tool makes of a file."""
    out = []
    for tool in TOOLS:
        rule = next((r for r in RULES if tool in r.tools and r.holds(traits)), None)
        out.append(Reading(tool, rule.how, rule.says) if rule else Reading(tool, UNTRIED))
    return out


def sentences(found: Collection[Reading], warnings: bool = False) -> list[str]:
    """One for all tools of which the same is to be said; `warnings` are those alone that lose something."""
    groups: dict[tuple[str, str], list[str]] = {}
    for r in found:
        groups.setdefault((r.how, r.says), []).append(r.tool)
    order = (EXACT, WRONG, PART, UNREAD, UNTRIED)
    lines = sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    shown = [(how, says, tools) for (how, says), tools in lines if not warnings or how in (WRONG, PART) or (how == EXACT and says)]
    return [
        f"{' and '.join(tools) if len(tools) < 3 else ', '.join(tools)}: {how}{f' ({says})' if says else ''}" for how, says, tools in shown
    ]


def table() -> str:
    """All of it in Markdown, a row for each family, layout and kind that can be written."""
    lines = ["| family | layout | file holds | exact | wrong, or in part | not read | untried |", "|---|---|---|---|---|---|---|"]
    for family in (spec.name for spec in FAMILIES):
        for layout, kinds in (("kohya", ("lora", "dora", "loha, lokr, full")), ("diffusers", ("lora", "dora")), ("peft", ("lora", "dora"))):
            for kind in kinds:
                found = readings(Traits(family, layout, frozenset(kind.split(", "))))
                by = {how: [r for r in found if r.how == how] for how in (EXACT, WRONG, PART, UNREAD, UNTRIED)}
                lost = "; ".join(s.replace(f": {WRONG} ", " ").replace(f": {PART} ", " ") for s in sentences([*by[WRONG], *by[PART]]))
                names = [", ".join(r.tool for r in by[how]) for how in (EXACT, UNREAD, UNTRIED)]
                lines.append(f"| {family} | {layout} | {kind} | {names[0]} | {lost} | {names[1]} | {names[2]} |")
    return "\n".join(lines)
