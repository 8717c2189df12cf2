"""Which tools read which adapter files, and how well: the rules of each family, from its own files. Torch-free.

What is said of diffusers, PEFT and LyCORIS is held against these libraries by tests/test_readers.py. What is said of the others was
measured once with their own code, as a share of the file's change of the weights; `untried` is what was not.
"""

from dataclasses import dataclass

TOOLS = ("ComfyUI", "Forge", "A1111", "SD.Next", "InvokeAI", "sd-scripts", "LyCORIS", "SGLang", "diffusers", "PEFT")
EXACT, WRONG, PART, UNREAD, UNTRIED = "exact", "wrong", "in part", "not read", "untried"
LORA = frozenset({"lora"})
DORA = frozenset({"dora"})
LOW_RANK = LORA | DORA
LYCORIS = frozenset({"loha", "lokr", "full"})
OFT = frozenset({"oft"})  # LyCORIS's rotations, which other tools write: ours are written as whole differences


@dataclass(frozen=True)
class Traits:
    """What of a file decides who reads it. `layout` is kohya, diffusers or peft; `kinds` are those of adapters/weights.py."""

    layout: str
    kinds: frozenset[str]
    outer: bool = False  # it changes layers that stand outside the blocks, which some readers overlook
    mixed: bool = False  # its modules are of several ranks
    more: bool = False  # it holds changes of biases, or embeddings


@dataclass(frozen=True)
class Rule:
    """What the tools make of a file with any of these kinds in one of these layouts."""

    tools: tuple[str, ...]
    how: str
    layouts: tuple[str, ...]
    kinds: frozenset[str] = LOW_RANK | LYCORIS | OFT
    says: str = ""  # what is off, and by how much
    outer: bool = False  # holds for files that have the trait alone
    mixed: bool = False
    more: bool = False

    def holds(self, t: Traits) -> bool:
        asked = (not self.outer or t.outer) and (not self.mixed or t.mixed) and (not self.more or t.more)
        return asked and t.layout in self.layouts and bool(t.kinds & self.kinds)


_DIVIDES = "divides DoRA's direction by the norm of the base's weights, not of the changed ones: 11 % of the change is off"
DROPS = "leaves DoRA's norms out"
BOTH = ("ComfyUI", "Forge")

# Of every family. The first rule that holds is what is said; of a tool without one, nothing is known.
_BEYOND = (
    Rule(("diffusers",), UNREAD, ("kohya",), more=True, says="refuses changes of biases, and embeddings beside an adapter"),
    Rule(("PEFT",), UNREAD, ("kohya", "diffusers"), says="reads folders of its own layout"),
    Rule(("diffusers",), UNREAD, ("peft",), says="reads files, not folders of PEFT's"),
    Rule(TOOLS, UNTRIED, ("kohya",), more=True),
)
_OFT = (
    Rule(("diffusers",), UNREAD, ("kohya",), OFT, "reads LoRA and DoRA alone"),
    Rule(TOOLS, UNTRIED, ("kohya",), OFT),
)
# Of DoRA and LoRA in kohya's layout, where it was measured for a family.
MEASURED_DORA = (
    Rule(BOTH, WRONG, ("kohya",), DORA, _DIVIDES),
    Rule(("SD.Next", "LyCORIS"), EXACT, ("kohya",), DORA),
)
MEASURED_LORA = Rule(("diffusers",), EXACT, ("kohya",), LORA)
_LAST = (
    Rule(("diffusers",), UNREAD, ("kohya",), LYCORIS | DORA, "reads LoRA and DoRA alone"),
    Rule(("diffusers",), EXACT, ("diffusers",), LOW_RANK),
    Rule(("PEFT",), EXACT, ("peft",), LOW_RANK),
    Rule(("LyCORIS",), UNREAD, ("diffusers", "peft"), LOW_RANK, "loads no module of it, and says nothing"),
)


def rules(*family: Rule, oft: tuple[Rule, ...] = ()) -> tuple[Rule, ...]:
    """Those of a family's own, `oft` of files with such layers, among those that hold for every family."""
    return (*_BEYOND, *oft, *_OFT, *family, *_LAST)
