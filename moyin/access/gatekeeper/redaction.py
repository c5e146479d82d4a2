"""Removes secrets from text before it is logged."""

from __future__ import annotations

import re

__all__ = ["redact"]

_SECRETS = re.compile(
    r"(?P<key>moyin_[0-9A-Za-z]{1,32}_)[\w-]{8,}"  # API keys; the id stays
    r"|(?P<token>moyin[a-z]_)[\w-]{8,}"  # refresh and reset tokens
    r"|(?P<jwt>eyJ[\w-]{5,}\.)[\w-]+\.[\w-]*"
    r"|(?P<vendor>\bsk-(?:ant-)?)[\w-]{8,}"
    r"|(?P<query>[?&](?:api_key|key|token|code|state)=)[^&\s\"']+"
    r"|(?P<cookie>\bmoyin_session=)[^;\s\"']+"
    r"|(?P<header>(?i:\b(?:bearer|basic)\s+))[\w.~+/=-]{8,}"
    r"|(?P<url>\w://[^\s:/@]*:)[^\s@/]+(?=@)"  # a password in an address
)


def redact(text: str) -> str:
    """Return ``text`` with keys, tokens and passwords replaced by ``…``."""
    return _SECRETS.sub(lambda match: f"{match[match.lastgroup or 0]}…", text)
