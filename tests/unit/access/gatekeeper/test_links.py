from __future__ import annotations

import pytest

from moyin.access.gatekeeper.identity import KeyAuthenticator, create_service_token
from moyin.access.gatekeeper.tokens import SIGNED_FILES_PREFIX, create_file_link, verify_file_link
from moyin.errors import InvalidKey, InvalidToken

KEY = b"0123456789abcdef0123456789abcdef"


def extract_token(link: str) -> str:
    return link.removeprefix(SIGNED_FILES_PREFIX).partition("/")[0]


def test_a_link_opens_one_file_of_one_owner() -> None:
    link = create_file_link(KEY, "ann", "art_1", "a b/ü.png", 60)
    assert link.endswith("/a%20b%2F%C3%BC.png")
    assert verify_file_link(KEY, extract_token(link)) == ("ann", "art_1")


@pytest.mark.parametrize(
    "wrong_token",
    [
        "x",
        extract_token(create_file_link(KEY, "ann", "art_1", "a.png", -1)),
        extract_token(create_file_link(b"1" * 32, "ann", "art_1", "a.png", 60)),
        create_service_token(KEY, "ann", "jobs"),
    ],
)
def test_other_tokens_open_no_file(wrong_token: str) -> None:
    with pytest.raises(InvalidToken):
        verify_file_link(KEY, wrong_token)


async def test_a_file_link_is_not_accepted_as_a_key() -> None:
    authenticator = KeyAuthenticator(None, KEY)  # type: ignore[arg-type]
    with pytest.raises(InvalidKey):
        await authenticator.authenticate(
            extract_token(create_file_link(KEY, "ann", "art_1", "a.png", 60))
        )
