from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from moyin.errors import (
    BackendKeyRejected,
    BackendRejected,
    BackendTimeout,
    ModelNotFound,
    Overloaded,
)
from moyin.text.backends.status import error_of, seconds_of


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("999999999", 3600.0),
    ],
)
def test_a_wait_in_seconds(header: str | None, seconds: float | None) -> None:
    assert seconds_of(header) == seconds


def test_a_wait_until_a_date() -> None:
    assert seconds_of(formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=2)
    assert seconds_of(formatdate(time.time() - 60, usegmt=True)) == 0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BackendRejected),
        (401, BackendKeyRejected),
        (403, BackendKeyRejected),
        (404, ModelNotFound),
        (429, Overloaded),
        (504, BackendTimeout),
    ],
)
def test_statuses_are_sorted(status: int, kind: type[Exception]) -> None:
    assert isinstance(error_of(status, "why", None), kind)
