from __future__ import annotations

from moyin import errors
from moyin.access.gatekeeper import get_http_status


def _list_error_classes(error_class: type[errors.MoyinError]) -> list[type[errors.MoyinError]]:
    return [
        error_class,
        *(
            descendant
            for child in error_class.__subclasses__()
            for descendant in _list_error_classes(child)
        ),
    ]


def test_every_error_has_a_status_and_a_unique_code() -> None:
    error_classes = [
        error_class
        for error_class in _list_error_classes(errors.MoyinError)
        if error_class.__module__ == errors.__name__
    ]
    codes = [error_class.code for error_class in error_classes]
    assert len(set(codes)) == len(codes)
    for error_class in error_classes:
        assert 400 <= get_http_status(error_class("x")) < 600


def test_common_errors_have_their_http_statuses() -> None:
    assert get_http_status(errors.IdempotencyMismatch("x")) == 422
    assert get_http_status(errors.JobFinished("x")) == 409
    assert get_http_status(errors.JobNotFound("x")) == 404
    assert get_http_status(errors.BodyTooLarge("x")) == 413
    assert get_http_status(errors.InvalidKey("x")) == 401
