"""Calls the accounts API directly, to prepare tests of the console and to check their effects."""

from __future__ import annotations

import secrets
from typing import Any

import httpx

PASSWORD = "correct horse battery"


class AccountsApi:
    """Calls routes below ``/accounts`` with an API key."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = f"{url}/accounts"
        self._key = api_key

    def call(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> Any:
        """Call the API, assert that it succeeds, and return the response's body."""
        response = self.send(method, path, body, key=key)
        assert response.is_success, response.text
        return response.json() if response.content else None

    def send(
        self, method: str, path: str, body: Any = None, *, key: str | None = None
    ) -> httpx.Response:
        bearer = {"authorization": f"Bearer {key or self._key}"}
        return httpx.request(method, f"{self._url}{path}", json=body, headers=bearer, timeout=60)

    def create_organisation(self) -> tuple[str, str]:
        """Create an organisation, and return its id and name."""
        name = f"Studio {secrets.token_hex(4)}"
        organisation_id: str = self.call("POST", "/organisations", {"name": name})["id"]
        return organisation_id, name

    def invite(self, organisation: str, role: str, name: str) -> tuple[str, str]:
        """Invite a new member, and return the email and the token of the invitation."""
        email = f"{secrets.token_hex(6)}@example.com"
        path = f"/organisations/{organisation}/members"
        invitation = self.call("POST", path, {"email": email, "role": role, "name": name})
        return email, invitation["invitation"]

    def create_member(self, organisation: str, role: str, name: str) -> str:
        """Create a member with the password ``PASSWORD``, and return the email."""
        email, token = self.invite(organisation, role, name)
        self.call("POST", "/password/reset", {"token": token, "password": PASSWORD})
        return email

    def create_key(self, email: str, **body: Any) -> tuple[str, str]:
        """Create a key as a member with the password ``PASSWORD``; return the member's id and the key."""
        session = self.call("POST", "/login", {"email": email, "password": PASSWORD})
        created_key = self.call("POST", "/keys", body, key=session["access_token"])
        return session["user"]["id"], created_key["key"]
