"""What cannot be right in an adapter file, from its header alone. Torch-free."""

from finetune.adapters import keys, leaves
from finetune.errors import line
from finetune.families import catalogue
from finetune.header import Header

MOST_NUMBERS = 2**29  # of one layer's change, which small matrices can make large: the largest layers of all families have a tenth
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
INTEGERS = {"I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64"}


def problems(contents: keys.FileModules, top: Header) -> list[str]:
    """What cannot be right whatever the base, a line each: keys that are unknown or stand for a layer twice, tensors that do not match,
    numbers of a kind that is none of weights."""
    if not contents.entries:
        return [f"not an adapter in a known layout{of_family(contents)}: its first key is {min(top.shapes, default='missing')}"]
    out = [unknown_family(contents.family)] if contents.family and catalogue.names_of(contents.family) is None else []
    out += [f"key {key} belongs to no known layer{of_family(contents)}" for key in contents.unknown]
    out += [f"key {key} stands for a layer that another key stands for too" for key in contents.twice]
    for e in contents.entries:
        out += _misfits(e, top)
    for rows in contents.embeddings.values():
        for key in rows.values():
            if len(top.shapes[key]) not in (1, 2) or 0 in top.shapes[key]:
                out.append(f"key {key} has the shape {list(top.shapes[key])}")
    return out


def _misfits(e: keys.ModuleKeys, top: Header) -> list[str]:
    where, shapes = f"{e.part}.{e.modules[0]}", e.shapes(top.shapes)
    if e.kind is None:
        return [f"{where} {leaves.odd(e.leaves)}"]
    if leaf := leaves.misshapen(shapes):
        return [f"key {e.leaves[leaf]} has the shape {list(shapes[leaf])}"]
    if pair := leaves.unpaired(shapes):
        right, left = (list(shapes[x]) for x in pair)
        return [f"{where} has shapes {right} and {left}, no matching pair"]
    if (count := leaves.numbers(shapes)) > MOST_NUMBERS:
        return [f"{where} would change {count:,} weights; {MOST_NUMBERS:,} are believed"]
    out = []
    for leaf, key in e.leaves.items():
        allowed = FLOATS | INTEGERS if leaf == "alpha" else FLOATS
        if top.dtypes[key] not in allowed:
            out.append(f"key {key} holds numbers of the kind {top.dtypes[key]}, which are not understood here")
    return out


def of_family(contents: keys.FileModules) -> str:
    return f" of {contents.family}" if contents.family else ""


def unknown_family(family: str) -> str:
    known = ", ".join(spec.name for spec in catalogue.FAMILIES)
    return f"it is said to be of the family {line(family, 60)}, which is not known here; known are {known}"
