from __future__ import annotations

from tests.unit.accounts.studio import studio

__all__ = ["studio"]
