from __future__ import annotations

from tests.unit.access.accounts.studio import studio

__all__ = ["studio"]
