"""Applies a new ``user_config`` while requests are in progress."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

__all__ = ["HotConfig"]

Config = TypeVar("Config", bound=BaseModel)
_log = logging.getLogger(__name__)


class HotConfig(Generic[Config]):
    """Holds the configuration of one replica.

    Serve ends a replica whose `reconfigure` raises, and then its successors, so that a typing error
    would take the app down. Therefore only the first configuration may fail. Later invalid ones are
    logged and ignored.

    Args:
        apply: applies a valid configuration completely, or raises ValueError and changes nothing.
    """

    def __init__(self, model: type[Config], apply: Callable[[Config], None]) -> None:
        self._model = model
        self._apply = apply
        self._loaded = False

    def load(self, user_config: dict[str, Any]) -> None:
        """Validate and apply a configuration.

        Raises:
            ValueError: the first configuration is invalid; names the field.
        """
        try:
            self._apply(self._model.model_validate(user_config))
        except ValueError as error:
            if not self._loaded:
                raise
            _log.error(
                "ignored an invalid user_config; the previous one stays in force: %s", _line(error)
            )
        else:
            self._loaded = True


def _line(error: ValueError) -> str:
    """Describe the errors with their fields, without values: they may be secrets."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
