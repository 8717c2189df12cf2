"""What every section of the settings is: strict, frozen, checked in its defaults too."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Word = Annotated[str, Field(pattern=r"^[^\s,]{1,60}$")]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, coerce_numbers_to_str=True)
