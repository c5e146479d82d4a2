from __future__ import annotations

import pytest

from moyin.access.accounts.passwords import check_strength
from moyin.errors import WeakPassword


def check(
    password: str, *, email: str | None = "ann.lee@example.com", name: str = "Ann Lee"
) -> None:
    check_strength(password, email=email, name=name, field="new_password")


@pytest.mark.parametrize(
    "password",
    [
        "password1234", "1234567890", "qwertyuiop", "iloveyou123", "aaaaaaaaaaaaaaaa", "P@ssw0rd123",
        "ann.lee@example.com", "AnnLee2026", "annexample1", "example.com!!", "Lee.Ann.99",
        "abcdefghijkl",
    ],
)  # fmt: skip
def test_weak_passwords_are_refused(password: str) -> None:
    with pytest.raises(WeakPassword) as caught:
        check(password)
    assert (caught.value.code, caught.value.field) == ("weak_password", "new_password")
    assert password.casefold() not in caught.value.message.casefold()


@pytest.mark.parametrize(
    "password",
    ["correct horse battery", "a brand new one", "x9$kQ!vv2LpZ", "lee likes long green walks", "画" * 3 + "雨夜山中歌曲", "w" * 3 + "e7 fjord quilt" * 30],
)  # fmt: skip
def test_strong_passwords_are_accepted(password: str) -> None:
    check(password)
    check(password, email=None, name="")
