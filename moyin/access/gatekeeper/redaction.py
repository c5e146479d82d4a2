"""Takes secrets out of text that is to be logged, however they got there."""

from __future__ import annotations

import re

__all__ = ["redact"]

_SECRETS = re.compile(
    r"(?P<key>moyin_[0-9A-Za-z]{1,32}_)[\w-]{8,}"  # our API keys: the id may be seen
    r"|(?P<token>moyin[a-z]_)[\w-]{8,}"  # refresh and reset tokens
    r"|(?P<jwt>eyJ[\w-]{5,}\.)[\w-]+\.[\w-]*"
    r"|(?P<vendor>\bsk-(?:ant-)?)[\w-]{8,}"
    r"|(?P<query>[?&](?:api_key|key|token|code|state)=)[^&\s\"']+"
    r"|(?P<cookie>\bmoyin_session=)[^;\s\"']+"
    r"|(?P<header>(?i:\b(?:bearer|basic)\s+))[\w.~+/=-]{8,}"
    r"|(?P<url>\w://[^\s:/@]*:)[^\s@/]+(?=@)"  # a password in an address
)


def redact(text: str) -> str:
    """``text`` with ``…`` in the place of keys, tokens and passwords."""
    return _SECRETS.sub(lambda found: f"{found[found.lastgroup or 0]}…", text)
