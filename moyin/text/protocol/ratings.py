"""Defines the JSON bodies that rate answers: clients' feedback and the judge's grades."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

_RequestId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
_Comment = Annotated[str, StringConstraints(max_length=2_000, pattern=r"^[^\x00]*$")]


class _ClientBody(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FeedbackBody(_ClientBody):
    """A client's rating of an answer, or its reference to a better answer.

    Attributes:
        request_id: the ``x-request-id`` header of the rated answer.
        score: from 0 (a useless answer) to 1 (a good answer).
        better_request_id: the ``x-request-id`` header of a better answer to the same question.
        comment: a note for the operator; at most 2,000 characters.
    """

    request_id: _RequestId
    score: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    better_request_id: _RequestId | None = None
    comment: _Comment | None = None

    @model_validator(mode="after")
    def _require_one_rating(self) -> FeedbackBody:
        if (self.score is None) is (self.better_request_id is None):
            raise ValueError("exactly one of 'score' and 'better_request_id' is required")
        if self.better_request_id == self.request_id:
            raise ValueError("'better_request_id' must differ from 'request_id'")
        return self


class FreezeBody(_ClientBody):
    """The request to stop learning from a tenant's signals, or to resume it."""

    frozen: bool


BEST_GRADE = 4  # the worst grade is 0


class GradesBody(BaseModel):
    """The grades that the judge model gave two answers.

    Attributes:
        reason: the judge's explanation of the grades.
        first: the grade of the answer that the judge read first, from 0 to `BEST_GRADE`.
        second: the grade of the answer that the judge read second, from 0 to `BEST_GRADE`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str
    first: int = Field(ge=0, le=BEST_GRADE)
    second: int = Field(ge=0, le=BEST_GRADE)
