from __future__ import annotations

import pytest

from moyin.access.gatekeeper.identity import KeyAuthenticator, mint_token
from moyin.access.gatekeeper.links import SIGNED, link_to, read_link
from moyin.errors import InvalidKey, InvalidToken

KEY = b"0123456789abcdef0123456789abcdef"


def token(link: str) -> str:
    return link.removeprefix(SIGNED).partition("/")[0]


def test_a_link_opens_one_file_of_one_owner() -> None:
    link = link_to(KEY, "ann", "art_1", "a b/ü.png", 60)
    assert link.endswith("/a%20b%2F%C3%BC.png")
    assert read_link(KEY, token(link)) == ("ann", "art_1")


@pytest.mark.parametrize(
    "wrong",
    [
        "x",
        token(link_to(KEY, "ann", "art_1", "a.png", -1)),
        token(link_to(b"1" * 32, "ann", "art_1", "a.png", 60)),
        mint_token(KEY, "ann", "jobs"),
    ],
)
def test_nothing_else_opens_any(wrong: str) -> None:
    with pytest.raises(InvalidToken):
        read_link(KEY, wrong)


async def test_a_link_is_no_key() -> None:
    authenticator = KeyAuthenticator(None, KEY)  # type: ignore[arg-type]
    with pytest.raises(InvalidKey):
        await authenticator.authenticate(token(link_to(KEY, "ann", "art_1", "a.png", 60)))
