from __future__ import annotations

from moyin import errors
from moyin.access.gatekeeper import status_of


def _family(kind: type[errors.MoyinError]) -> list[type[errors.MoyinError]]:
    return [kind, *(grand for child in kind.__subclasses__() for grand in _family(child))]


def test_every_error_has_a_status_and_a_unique_code() -> None:
    family = [kind for kind in _family(errors.MoyinError) if kind.__module__ == errors.__name__]
    codes = [kind.code for kind in family]
    assert len(set(codes)) == len(codes)
    for kind in family:
        assert 400 <= status_of(kind("x")) < 600


def test_statuses_of_common_errors() -> None:
    assert status_of(errors.IdempotencyMismatch("x")) == 422
    assert status_of(errors.JobFinished("x")) == 409
    assert status_of(errors.JobNotFound("x")) == 404
    assert status_of(errors.BodyTooLarge("x")) == 413
    assert status_of(errors.InvalidKey("x")) == 401
