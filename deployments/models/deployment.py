"""`Models`: the Serve deployment behind ``/v1``."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from deployments.logs import configure_logs
from deployments.models.app import ModelsParts, new_app
from deployments.models.config import ModelsConfig
from deployments.models.fleet import Garage
from deployments.observer import ServeObserver
from moyin.gatekeeper import Gatekeeper, KeyAuthenticator
from moyin.routing.catalog import Catalog
from moyin.routing.dispatch import Dispatcher
from moyin.routing.fleet import Fleet
from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from moyin.store.usage import UsageLedger

__all__ = ["Models"]


class Models:
    """Constructs the router's parts inside the replica."""

    def __init__(self) -> None:
        settings = Settings()
        configure_logs(settings.log_level)
        database = Database(settings.sql_url)
        ledger = UsageLedger(database)
        self._garage = Garage(settings)
        self._dispatcher = Dispatcher(Fleet(catalog=Catalog(offers=()), lanes={}), ledger)

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            await database.ready()
            await ledger.start()
            _leave_startup_to_rest()
            yield
            await self._garage.close()
            await ledger.close()
            await database.close()

        self._parts = ModelsParts(
            dispatcher=self._dispatcher,
            ledger=ledger,
            authenticator=KeyAuthenticator(KeyStore(database), settings.signing_key()),
            observer=ServeObserver(settings.log_level),
            max_body_bytes=settings.max_body_bytes,
            lifespan=lifespan,
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over new back ends, aliases and prices; requests under way are not touched.

        Raises:
            pydantic.ValidationError: the configuration is wrong; the old one stays in force.
        """
        config = ModelsConfig.model_validate(user_config)
        self._dispatcher.fleet = self._garage.build(config)

    def __serve_build_asgi_app__(self) -> Gatekeeper:
        return new_app(self._parts).unnamed()


def _leave_startup_to_rest() -> None:
    """Take what was imported out of the garbage collector's sight: Ray and the SDKs are hundreds
    of thousands of objects that live for ever, and every full collection would walk them."""
    gc.collect()
    gc.freeze()
