"""Counts failed prompts in a row, because a node may have broken ComfyUI for every tenant."""

from __future__ import annotations

_MAX_TENANTS = 3


class FailureStreak:
    """The tenants whose prompts one ComfyUI process has failed since its last success.

    No response of the process proves that it works, because its nodes can forge each of them. A
    process that fails three tenants in a row is replaced. A tenant alone can't cause that.
    """

    def __init__(self) -> None:
        self._tenants: set[str] = set()

    @property
    def is_over(self) -> bool:
        """Whether prompts of three tenants have failed in a row."""
        return len(self._tenants) >= _MAX_TENANTS

    def add_failure(self, tenant: str) -> None:
        """Count a failed prompt; ``tenant`` is any text that differs between tenants."""
        self._tenants.add(tenant)

    def end(self) -> None:
        """Begin a new streak, after a success or for a new process."""
        self._tenants.clear()
