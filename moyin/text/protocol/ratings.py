"""Holds the bodies of clients' feedback and of the judge's grades."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

__all__ = ["BEST_GRADE", "FeedbackBody", "FreezeBody", "GradesBody"]

_RequestId = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FeedbackBody(_Body):
    """The rating of an answer, or a reference to a better answer.

    Attributes:
        request_id: the ``x-request-id`` of the answer.
        score: 0 for a useless answer, 1 for a good one.
        better_request_id: the ``x-request-id`` of a better answer to the same question.
        comment: a note for the operator; at most 2,000 characters.
    """

    request_id: _RequestId
    score: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    better_request_id: _RequestId | None = None
    comment: Annotated[str, StringConstraints(max_length=2_000, pattern=r"^[^\x00]*$")] | None = (
        None
    )

    @model_validator(mode="after")
    def _check_members(self) -> FeedbackBody:
        if (self.score is None) is (self.better_request_id is None):
            raise ValueError("exactly one of 'score' and 'better_request_id' is required")
        if self.better_request_id == self.request_id:
            raise ValueError("'better_request_id' must differ from 'request_id'")
        return self


class FreezeBody(_Body):
    """The request to stop or to continue learning."""

    frozen: bool


BEST_GRADE = 4


class GradesBody(BaseModel):
    """The judge's grades of two answers, in the order in which the judge read them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str
    first: int = Field(ge=0, le=BEST_GRADE)
    second: int = Field(ge=0, le=BEST_GRADE)
