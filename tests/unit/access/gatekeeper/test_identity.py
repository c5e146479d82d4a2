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
async def key_store(tmp_path: Path) -> AsyncIterator[KeyStore]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    yield KeyStore(database)
    await database.close()


async def test_a_revoked_key_is_accepted_until_its_cache_entry_expires(
    key_store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = KeyAuthenticator(key_store, SIGNING)
    key_id, key = await key_store.create("ada", "k")
    clock = 100.0
    monkeypatch.setattr("moyin.access.gatekeeper.identity.time.monotonic", lambda: clock)
    assert (await authenticator.authenticate(key)).owner == "ada"
    await key_store.revoke(key_id)
    assert (await authenticator.authenticate(key)).owner == "ada"
    clock += 5.1
    with pytest.raises(InvalidKey):
        await authenticator.authenticate(key)


async def test_the_cache_of_keys_is_bounded(
    key_store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CACHE_SIZE", 2)
    authenticator = KeyAuthenticator(key_store, SIGNING)
    for _ in range(4):
        await authenticator.authenticate((await key_store.create("ada", "k"))[1])
    assert len(authenticator._cache) == 2


async def test_an_internal_token_acts_for_an_owner(key_store: KeyStore) -> None:
    authenticator = KeyAuthenticator(key_store, SIGNING)
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
async def test_a_forged_token_is_refused(key_store: KeyStore, token: str) -> None:
    with pytest.raises(InvalidKey):
        await KeyAuthenticator(key_store, SIGNING).authenticate(token)


async def test_an_event_token_reads_one_job_until_its_key_is_revoked(key_store: KeyStore) -> None:
    key_id, key = await key_store.create("ann", "k", scopes={"jobs:read", "jobs:write", "text"})
    authenticator = KeyAuthenticator(key_store, SIGNING)
    token = create_event_token(SIGNING, await authenticator.authenticate(key), "j", 60)
    identity = await authenticator.authenticate_event_token(token)
    assert (identity.owner, identity.key_id, identity.job) == ("ann", key_id, "j")
    assert identity.scopes == {"jobs:read"}
    assert [identity.may_read_job(job) for job in ("j", "k", None)] == [True, False, False]
    with pytest.raises(InvalidKey):
        await authenticator.authenticate(token)
    await key_store.revoke(key_id)
    with pytest.raises(InvalidKey):
        await authenticator.authenticate_event_token(token)


async def test_an_event_token_ends_with_the_secret_of_its_creator(key_store: KeyStore) -> None:
    key_id, old_secret = await key_store.create("ann", "k")
    authenticator = KeyAuthenticator(key_store, SIGNING, uses_cache=False)

    async def create_token(secret: str) -> str:
        return create_event_token(SIGNING, await authenticator.authenticate(secret), "j", 60)

    async def is_valid(token: str) -> bool:
        try:
            identity = await authenticator.authenticate_event_token(token)
        except InvalidKey:
            return False
        assert token in await authenticator.recheck({token: identity})
        return True

    token_before = await create_token(old_secret)
    new_secret = await key_store.rotate(key_id, overlap=timedelta(hours=1))
    token_within_overlap, token_of_new_secret = (
        await create_token(old_secret),
        await create_token(new_secret),
    )
    assert [
        await is_valid(token) for token in (token_before, token_within_overlap, token_of_new_secret)
    ] == [True] * 3
    # The next rotation ends the first secret, whatever the overlap of the second.
    await key_store.rotate(key_id, overlap=timedelta(hours=1))
    assert [
        await is_valid(token) for token in (token_before, token_within_overlap, token_of_new_secret)
    ] == [False, False, True]
    await key_store.rotate(key_id)
    assert not await is_valid(token_of_new_secret)


async def test_no_keys_are_queried_for_the_tokens_of_sessions(
    key_store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise AssertionError("keys were queried")

    monkeypatch.setattr("moyin.store.sql.Database.fetch_all", fail)
    session = Identity(owner="ann", key_id="ses_1", user="ann")
    token = create_event_token(SIGNING, session, "j", 60)
    with pytest.raises(InvalidKey):
        await KeyAuthenticator(key_store, SIGNING).authenticate_event_token(token)


async def test_an_event_token_is_refused_if_its_key_may_not_read_jobs(key_store: KeyStore) -> None:
    _, key = await key_store.create("ann", "k", scopes={"text"})
    authenticator = KeyAuthenticator(key_store, SIGNING)
    token = create_event_token(SIGNING, await authenticator.authenticate(key), "j", 60)
    with pytest.raises(InvalidKey):
        await authenticator.authenticate_event_token(token)


@pytest.mark.parametrize(
    "token_kind", ["expired", "another secret", "a link", "a service's", "garbage"]
)
async def test_other_tokens_are_no_event_tokens(key_store: KeyStore, token_kind: str) -> None:
    key_id, _ = await key_store.create("ann", "k")
    creator = Identity(owner="ann", key_id=key_id)
    link = create_file_link(SIGNING, "ann", "art_1", "a", 60)
    token = {
        "expired": create_event_token(SIGNING, creator, "j", -1),
        "another secret": create_event_token(b"t" * 32, creator, "j", 60),
        "a link": link.removeprefix(SIGNED_FILES_PREFIX).partition("/")[0],
        "a service's": create_service_token(SIGNING, "ann", "jobs"),
        "garbage": "a.b.c",
    }[token_kind]
    with pytest.raises(InvalidToken):
        await KeyAuthenticator(key_store, SIGNING).authenticate_event_token(token)
