"""Defines the Ray Serve deployment of the accounts app."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from deployments.accounts.app import new_app, new_services
from deployments.accounts.config import AccountsConfig
from deployments.logs import configure_logs
from deployments.observer import RequestObserver
from deployments.replicas import ReloadableConfig
from moyin.access.accounts.mail import create_mailer
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.jobs.grpc.bridge import MoyinCalls, RefusingBridge
from moyin.jobs.grpc.health import HealthMonitor
from moyin.settings import Settings
from moyin.system.ranks import Rank, take_rank


class Accounts(MoyinCalls):
    """Serves the accounts app in one replica, with services built from the settings.

    A gRPC call gets an error that names the app to call instead.
    """

    grpc_bridge = RefusingBridge()
    grpc_health = HealthMonitor(grpc_bridge.is_ready)

    def __init__(self, token_lifetime: timedelta, session_idle: timedelta) -> None:
        settings = Settings()
        take_rank(Rank.REPLICA)
        configure_logs(settings.log_level)
        self._services = new_services(
            settings,
            observer=RequestObserver(settings.log_level),
            mailer=create_mailer(settings.smtp_url, settings.mail_from),
            token_lifetime=token_lifetime,
            session_idle=session_idle,
        )
        self._config = ReloadableConfig(AccountsConfig, self._apply_config)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a new ``user_config``; Ray Serve calls this at start and after every change."""
        self._config.load(user_config)

    def _apply_config(self, config: AccountsConfig) -> None:
        self._services.open_id.providers = config.build_providers_by_name()
        self._services.sign_in.policy = config.sign_in_policy

    def __serve_build_asgi_app__(self) -> Gatekeeper:
        return new_app(self._services).disable_request_id()
