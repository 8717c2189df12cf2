"""What every section of the settings is: strict, frozen, checked in its defaults too."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from finetune.text import BRACES, blank

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Word = Annotated[str, Field(pattern=r"^[^\s,]{1,60}$")]
PLACEHOLDERS = ("name", "folder")


def _said(value: str) -> str:
    if blank(value):
        raise ValueError("is blank; leave it out, or give words")
    return value


def _template(value: str) -> str:
    if wrong := [f"{{{b}}}" for b in BRACES.findall(value) if b not in PLACEHOLDERS and "|" not in b]:
        raise ValueError(f"{wrong[0]} is no placeholder; {{name}} and {{folder}} are")
    return _said(value)


def _around(value: str) -> str:
    if wrong := [f"{{{b}}}" for b in BRACES.findall(value) if "|" not in b]:
        raise ValueError(f"{wrong[0]} is taken as it stands here; placeholders are for data.caption")
    return value


Said = Annotated[str, AfterValidator(_said)]
Template = Annotated[str, AfterValidator(_template)]
Around = Annotated[str, AfterValidator(_around)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, coerce_numbers_to_str=True)
