"""Deploys the accounts app on Ray Serve."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from deployments.accounts.app import new_app
from deployments.accounts.config import AccountsConfig
from deployments.accounts.parts import new_parts
from deployments.hot import HotConfig
from deployments.logs import configure_logs
from deployments.observer import ServeObserver
from moyin.access.accounts.mail import create_mailer
from moyin.access.gatekeeper import Gatekeeper
from moyin.settings import Settings

__all__ = ["Accounts"]


class Accounts:
    """Constructs the services of one replica of the accounts app and serves it."""

    def __init__(self, token_lifetime: timedelta, session_idle: timedelta) -> None:
        settings = Settings()
        configure_logs(settings.log_level)
        self._parts = new_parts(
            settings,
            observer=ServeObserver(settings.log_level),
            mailer=create_mailer(settings.smtp_url, settings.mail_from),
            token_lifetime=token_lifetime,
            session_idle=session_idle,
        )
        self._config = HotConfig(AccountsConfig, self._apply)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a new ``user_config``."""
        self._config.load(user_config)

    def _apply(self, config: AccountsConfig) -> None:
        self._parts.open_id.providers = config.open_id_providers()
        self._parts.sign_in.policy = config.policy

    def __serve_build_asgi_app__(self) -> Gatekeeper:
        return new_app(self._parts).disable_request_id()
