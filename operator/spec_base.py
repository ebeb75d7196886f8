"""What every section of the run spec shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Section(BaseModel):
    """Frozen; an unknown field is an error; the text under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def at_least(lower: str, value: float, info: ValidationInfo) -> float:
    """Return value. Raises: ValueError when the field called lower, validated before, is more."""
    least = info.data.get(lower, value)
    if least is not None and value < least:
        raise ValueError(f"must be at least {lower}, which is {least:g}")
    return value
