from __future__ import annotations

import jwt
import pytest

from moyin.domain.identity import Identity
from moyin.proxy.identity import IdentitySigner, route_secret

KEY = b"0" * 32


def test_a_service_can_check_who_asks() -> None:
    ann = Identity(owner="ann", key_id="k1", user="u1", scopes=frozenset({"b", "a"}))
    headers = IdentitySigner(KEY, "assets").headers(ann)
    claims = jwt.decode(
        headers["x-moyin-identity"], route_secret(KEY, "assets"), ["HS256"],
        audience="assets", issuer="moyin",
    )  # fmt: skip
    assert (claims["sub"], claims["user"], claims["scopes"]) == ("ann", "u1", ["a", "b"])
    assert claims["exp"] - claims["iat"] == 120


def test_nobody_is_nobody() -> None:
    assert IdentitySigner(KEY, "assets").headers(None) == {}


def test_every_route_has_a_secret_of_its_own() -> None:
    token = IdentitySigner(KEY, "assets").headers(Identity(owner="ann", key_id="k"))
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token["x-moyin-identity"], route_secret(KEY, "b"), ["HS256"], audience="assets")


def test_a_token_is_made_once_for_a_while_and_per_caller() -> None:
    signer = IdentitySigner(KEY, "assets")
    ann, bob = Identity(owner="ann", key_id="k1"), Identity(owner="bob", key_id="k2")
    assert signer.headers(ann) is signer.headers(ann)
    assert signer.headers(ann) != signer.headers(bob)
