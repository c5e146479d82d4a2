from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import jwt
import pytest

from moyin.access.gatekeeper import identity as module
from moyin.access.gatekeeper.identity import KeyAuthenticator, create_service_token
from moyin.access.gatekeeper.tokens import (
    SIGNED_FILES_PREFIX,
    create_event_token,
    create_file_link,
)
from moyin.domain.identity import Identity
from moyin.errors import InvalidKey, InvalidToken
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


async def test_an_event_token_reads_one_job_until_its_key_is_revoked(keys: KeyStore) -> None:
    key_id, key = await keys.create("ann", "k", scopes={"jobs:read", "jobs:write", "text"})
    authenticator = KeyAuthenticator(keys, SIGNING)
    token = create_event_token(SIGNING, await authenticator.authenticate(key), "j", 60)
    identity = await authenticator.authenticate_event_token(token)
    assert (identity.owner, identity.key_id, identity.job) == ("ann", key_id, "j")
    assert identity.scopes == {"jobs:read"}
    assert [identity.may_read_job(job) for job in ("j", "k", None)] == [True, False, False]
    with pytest.raises(InvalidKey):
        await authenticator.authenticate(token)
    await keys.revoke(key_id)
    with pytest.raises(InvalidKey):
        await authenticator.authenticate_event_token(token)


async def test_an_event_token_ends_with_the_secret_that_made_it(keys: KeyStore) -> None:
    key_id, old_secret = await keys.create("ann", "k")
    authenticator = KeyAuthenticator(keys, SIGNING, uses_cache=False)

    async def make(key: str) -> str:
        return create_event_token(SIGNING, await authenticator.authenticate(key), "j", 60)

    async def is_valid(token: str) -> bool:
        try:
            identity = await authenticator.authenticate_event_token(token)
        except InvalidKey:
            return False
        assert token in await authenticator.recheck({token: identity})
        return True

    token_before = await make(old_secret)
    new_secret = await keys.rotate(key_id, overlap=timedelta(hours=1))
    token_within_overlap, token_of_new_secret = await make(old_secret), await make(new_secret)
    assert [
        await is_valid(token) for token in (token_before, token_within_overlap, token_of_new_secret)
    ] == [True] * 3
    # The next rotation ends the first secret, whatever the overlap of the second.
    await keys.rotate(key_id, overlap=timedelta(hours=1))
    assert [
        await is_valid(token) for token in (token_before, token_within_overlap, token_of_new_secret)
    ] == [False, False, True]
    await keys.rotate(key_id)
    assert not await is_valid(token_of_new_secret)


async def test_no_keys_are_queried_for_the_tokens_of_sessions(
    keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise AssertionError("keys were queried")

    monkeypatch.setattr("moyin.store.sql.Database.fetch_all", fail)
    session = Identity(owner="ann", key_id="ses_1", user="ann")
    token = create_event_token(SIGNING, session, "j", 60)
    with pytest.raises(InvalidKey):
        await KeyAuthenticator(keys, SIGNING).authenticate_event_token(token)


async def test_an_event_token_ends_with_its_key_s_right_to_read(keys: KeyStore) -> None:
    _, key = await keys.create("ann", "k", scopes={"text"})
    authenticator = KeyAuthenticator(keys, SIGNING)
    token = create_event_token(SIGNING, await authenticator.authenticate(key), "j", 60)
    with pytest.raises(InvalidKey):
        await authenticator.authenticate_event_token(token)


@pytest.mark.parametrize("kind", ["expired", "another secret", "a link", "a service's", "garbage"])
async def test_other_tokens_are_no_event_tokens(keys: KeyStore, kind: str) -> None:
    key_id, _ = await keys.create("ann", "k")
    creator = Identity(owner="ann", key_id=key_id)
    link = create_file_link(SIGNING, "ann", "art_1", "a", 60)
    token = {
        "expired": create_event_token(SIGNING, creator, "j", -1),
        "another secret": create_event_token(b"t" * 32, creator, "j", 60),
        "a link": link.removeprefix(SIGNED_FILES_PREFIX).partition("/")[0],
        "a service's": create_service_token(SIGNING, "ann", "jobs"),
        "garbage": "a.b.c",
    }[kind]
    with pytest.raises(InvalidToken):
        await KeyAuthenticator(keys, SIGNING).authenticate_event_token(token)
