"""Taking over a new ``user_config`` while requests are under way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

__all__ = ["HotConfig"]

Config = TypeVar("Config", bound=BaseModel)
_log = logging.getLogger(__name__)


class HotConfig(Generic[Config]):
    """The configuration of one replica.

    Serve ends a replica whose `reconfigure` raises, and then its successors: a typing error would
    take the app down. So only the first configuration may fail; later ones that are wrong are
    refused in the log, and the last right one stays in force.

    Args:
        apply: puts a valid configuration into force, wholly or, raising ValueError, not at all.
    """

    def __init__(self, model: type[Config], apply: Callable[[Config], None]) -> None:
        self._model = model
        self._apply = apply
        self._taken = False

    def take(self, user_config: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: it is the first one, and wrong; names the field.
        """
        try:
            self._apply(self._model.model_validate(user_config))
        except ValueError as error:
            if not self._taken:
                raise
            _log.error("refused user_config, the one before stays in force: %s", _line(error))
        else:
            self._taken = True


def _line(error: ValueError) -> str:
    """What is wrong where; never the values, among which may be secrets."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
