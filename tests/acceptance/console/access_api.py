"""Calls the accounts API beside the browser, to make what a test needs and to see what a page did."""

from __future__ import annotations

import secrets
from typing import Any

import httpx

PASSWORD = "correct horse battery"


class AccountsApi:
    """Calls ``/accounts`` with a key."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = f"{url}/accounts"
        self._key = api_key

    def call(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> Any:
        """Return the body of an answer that must be good."""
        answer = self.answer(method, path, body, key=key)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def answer(
        self, method: str, path: str, body: Any = None, *, key: str | None = None
    ) -> httpx.Response:
        bearer = {"authorization": f"Bearer {key or self._key}"}
        return httpx.request(method, f"{self._url}{path}", json=body, headers=bearer, timeout=60)

    def new_organisation(self) -> tuple[str, str]:
        """Return the id and the name of a new organisation."""
        name = f"Studio {secrets.token_hex(4)}"
        made: str = self.call("POST", "/organisations", {"name": name})["id"]
        return made, name

    def invite(self, organisation: str, role: str, name: str) -> tuple[str, str]:
        """Return the email of a new member and the token of the invitation."""
        email = f"{secrets.token_hex(6)}@example.com"
        path = f"/organisations/{organisation}/members"
        made = self.call("POST", path, {"email": email, "role": role, "name": name})
        return email, made["invitation"]

    def new_member(self, organisation: str, role: str, name: str) -> str:
        """Return the email of a new member, who has the password ``PASSWORD``."""
        email, token = self.invite(organisation, role, name)
        self.call("POST", "/password/reset", {"token": token, "password": PASSWORD})
        return email
