"""Tests that valid access tokens are accepted and forged ones rejected."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy.exc import OperationalError

from moyin.access.accounts.access_tokens import AccessTokenIssuer
from moyin.access.gatekeeper.identity import (
    KeyAuthenticator,
    create_authenticator,
    create_service_token_factory,
)
from moyin.domain.account import Session, User, UserKind
from moyin.domain.limits import Limit
from moyin.errors import InvalidKey, ServiceUnavailable
from moyin.store.keys import KeyStore
from moyin.store.limits import LimitStore
from moyin.store.schema import signing_keys
from moyin.store.sessions import SessionStore
from moyin.store.signing_keys import SigningKey, SigningKeyStore
from moyin.store.sql import Database, now
from moyin.store.users import UserStore
from tests.forging import encode_base64url, sign_with_hs256

SECRET = b"s" * 32


class SignedInPlayer:
    """A player with a session, and the database that holds both."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.keys = SigningKeyStore(database, SECRET)
        self.sessions = SessionStore(database)
        self.authenticator = create_authenticator(database, SECRET)
        self.user: User
        self.session: Session
        self.pair: SigningKey

    async def open(self) -> None:
        self.user = await UserStore(self.database).create(UserKind.PLAYER, email="a@b.c", name="")
        self.session, _ = await self.sessions.open(self.user.id)
        self.pair = await self.keys.get_newest()

    async def issue_token(self, lifetime: timedelta = timedelta(minutes=5)) -> str:
        issuer = AccessTokenIssuer(self.keys, lifetime)
        return await issuer.issue(self.user, self.session, {"player", "text"})

    def build_claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        return {
            "iss": "moyin", "aud": "moyin", "sub": self.user.id, "sid": self.session.id,
            "own": "victim", "scope": "*", "iat": now, "exp": now + 300, **changes,
        }  # fmt: skip

    def sign_token(self, key: Any = None, **changes: Any) -> str:
        headers = {"kid": self.pair.kid, "typ": changes.pop("typ", "at+jwt")}
        claims = {k: v for k, v in self.build_claims(**changes).items() if v is not None}
        return jwt.encode(claims, key or self.pair.key, "EdDSA", headers)


@pytest.fixture
async def player(tmp_path: Path) -> AsyncIterator[SignedInPlayer]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    player = SignedInPlayer(database)
    await player.open()
    yield player
    await database.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("moyin.access.gatekeeper.identity.time.monotonic", lambda: now[0])
    return now


async def test_an_access_token_authenticates_its_user(player: SignedInPlayer) -> None:
    identity = await player.authenticator.authenticate(await player.issue_token())
    assert (identity.owner, identity.user) == (player.user.id, player.user.id)
    assert identity.scopes == {"player", "text"}
    assert identity.key_id == player.session.id


async def test_a_token_from_a_clock_slightly_ahead_is_valid(player: SignedInPlayer) -> None:
    """A token that seems to be issued in the future is accepted, since replicas' clocks differ."""
    now = int(time.time())
    token = player.sign_token(iat=now + 3, exp=now + 303, own=player.user.id)
    assert (await player.authenticator.authenticate(token)).user == player.user.id


def _sign_with_public_key(player: SignedInPlayer) -> str:
    """Forge a token by using the public key as a shared secret (algorithm confusion); return it."""
    pem = player.pair.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return sign_with_hs256(player.build_claims(), {"kid": player.pair.kid, "typ": "at+jwt"}, pem)


def _make_unsigned_token(player: SignedInPlayer) -> str:
    return jwt.encode(player.build_claims(), "", "none", {"kid": player.pair.kid, "typ": "at+jwt"})


def _alter_claims(player: SignedInPlayer) -> str:
    head, _, signature = player.sign_token(own="me").split(".")

    return f"{head}.{encode_base64url(json.dumps(player.build_claims()).encode())}.{signature}"


FORGERIES: dict[str, Callable[[SignedInPlayer], str]] = {
    "algorithm confusion": _sign_with_public_key,
    "none": _make_unsigned_token,
    "altered": _alter_claims,
    "other key": lambda s: s.sign_token(Ed25519PrivateKey.generate()),
    "internal secret, person's claims": lambda s: sign_with_hs256(s.build_claims(), {}, SECRET),
    "expired": lambda s: s.sign_token(exp=int(time.time()) - 1),
    "other audience": lambda s: s.sign_token(aud="moyin-internal"),
    "other issuer": lambda s: s.sign_token(iss="evil"),
    "other type": lambda s: s.sign_token(typ="JWT"),
    "no session": lambda s: s.sign_token(sid=None),
    "made-up session": lambda s: s.sign_token(sid="ses_0"),
    "no expiry": lambda s: s.sign_token(exp=None),
    "unknown kid": lambda s: jwt.encode(
        s.build_claims(), s.pair.key, "EdDSA", {"kid": "../../dev/null", "typ": "at+jwt"}
    ),
    "garbage": lambda s: "a.b.c",
    "empty": lambda s: "..",
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
async def test_a_forged_token_is_refused(
    player: SignedInPlayer, forge: Callable[[SignedInPlayer], str]
) -> None:
    with pytest.raises(InvalidKey):
        await player.authenticator.authenticate(forge(player))


async def test_access_tokens_are_refused_without_a_verifier(player: SignedInPlayer) -> None:
    with pytest.raises(InvalidKey):
        await KeyAuthenticator(KeyStore(player.database), SECRET).authenticate(
            await player.issue_token()
        )


async def test_signing_out_takes_effect_within_five_seconds(
    player: SignedInPlayer, clock: list[float]
) -> None:
    token = await player.issue_token()
    await player.authenticator.authenticate(token)
    await player.sessions.revoke(player.session.id)
    clock[0] += 4.9
    with pytest.raises(InvalidKey, match="sign in again"):
        await player.authenticator.authenticate(token)


async def test_a_cached_token_ends_when_it_expires(
    player: SignedInPlayer, clock: list[float]
) -> None:
    token = await player.issue_token(timedelta(seconds=2))
    await player.authenticator.authenticate(token)
    # Cached until the token expires, not longer.
    assert player.authenticator._cache[token].fresh_until <= clock[0] + 2


async def test_after_a_rotation_the_old_key_still_verifies(player: SignedInPlayer) -> None:
    token_before = await player.issue_token()
    await player.authenticator.authenticate(token_before)
    new_key = await player.keys.add()
    token_after = await player.issue_token()
    assert jwt.get_unverified_header(token_after)["kid"] == new_key.kid
    authenticator = create_authenticator(player.database, SECRET)
    for token in (token_before, token_after):
        assert (await authenticator.authenticate(token)).user == player.user.id


async def test_without_the_database_cached_identities_stay_valid(
    player: SignedInPlayer, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, key = await KeyStore(player.database).create("studio", "k")
    token, other_token = await player.issue_token(), await player.issue_token(timedelta(minutes=4))
    for credential in (key, token):
        await player.authenticator.authenticate(credential)

    def fail(*_: Any) -> Any:
        raise OperationalError("SELECT", {}, OSError("away"))

    for method_name in ("read", "reading"):
        monkeypatch.setattr(player.database, method_name, fail)
    clock[0] += 60
    assert (await player.authenticator.authenticate(key)).owner == "studio"
    assert (await player.authenticator.authenticate(token)).user == player.user.id
    with pytest.raises(ServiceUnavailable):
        await player.authenticator.authenticate(other_token)
    clock[0] += 600
    for _ in range(2):
        with pytest.raises(ServiceUnavailable):
            await player.authenticator.authenticate(key)


async def test_an_identity_has_its_limits(player: SignedInPlayer) -> None:
    key_id, key = await KeyStore(player.database).create("studio", "k", scopes={"text"})
    limits = LimitStore(player.database)
    key_limit = Limit(subject=f"key:{key_id}", requests_per_minute=5, open_jobs=2)
    await limits.set(Limit(subject="owner:studio", concurrent_requests=3))
    await limits.set(key_limit)
    identity = await player.authenticator.authenticate(key)
    assert [limit.subject for limit in identity.limits] == [key_limit.subject, "owner:studio"]
    assert identity.limits[0] == key_limit
    # Requests of Moyin's services are not counted, since the client's request was.
    service_identity = await player.authenticator.authenticate(
        create_service_token_factory(SECRET, "jobs")(identity)
    )
    assert (service_identity.service, service_identity.key_id, service_identity.scopes) == (
        "jobs",
        key_id,
        {"text"},
    )
    assert service_identity.limits[0] == replace(key_limit, requests_per_minute=None)


async def test_the_private_key_is_not_in_the_database(
    player: SignedInPlayer, tmp_path: Path
) -> None:
    raw_key = player.pair.key.private_bytes_raw()
    database_bytes = b"".join(path.read_bytes() for path in tmp_path.glob("moyin.db*"))
    assert player.pair.kid.encode() in database_bytes
    assert (
        raw_key not in database_bytes
        and encode_base64url(raw_key).encode() not in database_bytes
        and raw_key.hex().encode() not in database_bytes
    )
    with pytest.raises(RuntimeError):
        await SigningKeyStore(player.database).get_newest()


async def test_a_new_key_is_the_newest_even_after_one_dated_in_the_future(
    player: SignedInPlayer,
) -> None:
    future_time = now() + timedelta(days=400)
    async with player.database.writing() as connection:
        await connection.execute(signing_keys.update().values(created_at=future_time))
    for _ in range(2):
        new_key = await player.keys.add()
        assert (await player.keys.get_newest()).kid == new_key.kid
        assert (await player.keys.list_public_keys())[0].kid == new_key.kid
