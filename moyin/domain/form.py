"""The form that a client asks an answer to have, in no protocol's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The form that an answer must have.

    Attributes:
        json: it must be JSON.
        schema: JSON schema that it must match; None: any JSON.
        tools: names of the tools that may be called.
        plain: one answer of text or tool calls is asked for; not several, none by voice.
    """

    json: bool = False
    schema: Mapping[str, Any] | None = None
    tools: frozenset[str] = frozenset()
    plain: bool = True


# Of most requests: whatever the model writes.
ANY_FORM = Form()
