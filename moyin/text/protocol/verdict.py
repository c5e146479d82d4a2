"""What the judge answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BEST_GRADE", "GradesBody"]

BEST_GRADE = 4


class GradesBody(BaseModel):
    """Grades of two answers, in the order in which the judge read them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str
    first: int = Field(ge=0, le=BEST_GRADE)
    second: int = Field(ge=0, le=BEST_GRADE)
