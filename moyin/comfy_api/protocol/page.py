"""Shapes of the page's own routes."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

__all__ = ["SessionBody", "SignIn"]


class SignIn(BaseModel):
    """``key``: an API key or an access token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4096)]


class SessionBody(BaseModel):
    """Who a browser is signed in as: the tenant, and the person where it is one's own key."""

    model_config = ConfigDict(frozen=True)

    owner: str
    user: str | None
