"""Defines the bodies of a browser's sign-in at ``/comfy/session``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

__all__ = ["SessionBody", "SignIn"]


class SignIn(BaseModel):
    """Holds the body of a sign-in; ``key`` is an API key or an access token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4096)]


class SessionBody(BaseModel):
    """Tells the tenant that a browser is signed in as, and the user if the key is a user's own."""

    model_config = ConfigDict(frozen=True)

    owner: str
    user: str | None
