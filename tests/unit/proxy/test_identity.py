from __future__ import annotations

import jwt
import pytest

from moyin.domain.identity import Identity
from moyin.proxy.identity import IdentitySigner, derive_route_secret

KEY = b"0" * 32


def test_a_service_can_verify_the_identity() -> None:
    ann = Identity(owner="ann", key_id="k1", user="u1", scopes=frozenset({"b", "a"}))
    headers = IdentitySigner(KEY, "assets").build_identity_headers(ann)
    claims = jwt.decode(
        headers["x-moyin-identity"], derive_route_secret(KEY, "assets"), ["HS256"],
        audience="assets", issuer="moyin",
    )  # fmt: skip
    assert (claims["sub"], claims["user"], claims["scopes"]) == ("ann", "u1", ["a", "b"])
    assert claims["exp"] - claims["iat"] == 120


def test_an_anonymous_caller_gets_no_identity_headers() -> None:
    assert IdentitySigner(KEY, "assets").build_identity_headers(None) == {}


def test_every_route_has_its_own_secret() -> None:
    headers = IdentitySigner(KEY, "assets").build_identity_headers(
        Identity(owner="ann", key_id="k")
    )
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(
            headers["x-moyin-identity"], derive_route_secret(KEY, "b"), ["HS256"], audience="assets"
        )


def test_tokens_are_cached_per_caller() -> None:
    signer = IdentitySigner(KEY, "assets")
    ann, bob = Identity(owner="ann", key_id="k1"), Identity(owner="bob", key_id="k2")
    assert signer.build_identity_headers(ann) is signer.build_identity_headers(ann)
    assert signer.build_identity_headers(ann) != signer.build_identity_headers(bob)
