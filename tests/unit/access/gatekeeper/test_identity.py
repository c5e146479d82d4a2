from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest

from moyin.access.gatekeeper import KeyAuthenticator, create_service_token
from moyin.access.gatekeeper import identity as module
from moyin.errors import InvalidKey
from moyin.store.keys import KeyStore
from moyin.store.sql import Database

SIGNING = b"s" * 32


@pytest.fixture
async def keys(tmp_path: Path) -> AsyncIterator[KeyStore]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    yield KeyStore(database)
    await database.close()


async def test_keys_are_cached_and_revocation_takes_effect(
    keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = KeyAuthenticator(keys, SIGNING)
    key_id, text = await keys.create("ada", "k")
    clock = 100.0
    monkeypatch.setattr("moyin.access.gatekeeper.identity.time.monotonic", lambda: clock)
    assert (await authenticator.authenticate(text)).owner == "ada"
    await keys.revoke(key_id)
    assert (await authenticator.authenticate(text)).owner == "ada"
    clock += 5.1
    with pytest.raises(InvalidKey):
        await authenticator.authenticate(text)


async def test_the_cache_is_bounded(keys: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHE_SIZE", 2)
    authenticator = KeyAuthenticator(keys, SIGNING)
    for _ in range(4):
        await authenticator.authenticate((await keys.create("ada", "k"))[1])
    assert len(authenticator._cache) == 2


async def test_an_internal_token_acts_for_an_owner(keys: KeyStore) -> None:
    authenticator = KeyAuthenticator(keys, SIGNING)
    identity = await authenticator.authenticate(create_service_token(SIGNING, "ada", "worker"))
    assert (identity.owner, identity.key_id) == ("ada", "internal:worker")


@pytest.mark.parametrize(
    "token",
    [
        create_service_token(b"x" * 32, "ada", "worker"),
        create_service_token(SIGNING, "ada", "worker", ttl_s=-1),
        jwt.encode({"sub": "ada", "iss": "w", "aud": "moyin-internal"}, SIGNING),
        jwt.encode({"sub": "ada", "iss": "w", "aud": "other", "exp": 9e9}, SIGNING),
        jwt.encode({"sub": "ada", "iss": "w", "aud": "moyin-internal", "exp": 9e9}, "", "none"),
        "a.b.c",
    ],
    ids=["other key", "expired", "no expiry", "other audience", "alg none", "garbage"],
)
async def test_a_forged_token_is_refused(keys: KeyStore, token: str) -> None:
    with pytest.raises(InvalidKey):
        await KeyAuthenticator(keys, SIGNING).authenticate(token)
