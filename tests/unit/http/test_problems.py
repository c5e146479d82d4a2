from __future__ import annotations

from moyin import errors
from moyin.access.gatekeeper import get_http_status


def _family(kind: type[errors.MoyinError]) -> list[type[errors.MoyinError]]:
    return [kind, *(descendant for child in kind.__subclasses__() for descendant in _family(child))]


def test_every_error_has_a_status_and_a_unique_code() -> None:
    family = [kind for kind in _family(errors.MoyinError) if kind.__module__ == errors.__name__]
    codes = [kind.code for kind in family]
    assert len(set(codes)) == len(codes)
    for kind in family:
        assert 400 <= get_http_status(kind("x")) < 600


def test_statuses_of_common_errors() -> None:
    assert get_http_status(errors.IdempotencyMismatch("x")) == 422
    assert get_http_status(errors.JobFinished("x")) == 409
    assert get_http_status(errors.JobNotFound("x")) == 404
    assert get_http_status(errors.BodyTooLarge("x")) == 413
    assert get_http_status(errors.InvalidKey("x")) == 401
