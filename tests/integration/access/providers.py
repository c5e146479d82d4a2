"""Runs a third-party OpenID provider, and configures the accounts app for it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from deployments.accounts.config import AccountsConfig
from tests.integration.access.fixtures import AccountsApp
from tests.integration.servers import free_port

BACK = "https://play.example/signed-in"


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """Run an OpenID provider, and yield its issuer URL."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(400):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        process.kill()


def configure(accounts_app: AccountsApp, issuer: str, **changes: Any) -> None:
    """Configure this provider as the only one through which users can sign in.

    Args:
        changes: other members of the provider's configuration.
    """
    provider_config = {
        "name": "studio",
        "issuer": issuer,
        "client_id": "moyin",
        "client_secret_env": "STUDIO_SECRET",
        "redirect_uris": [BACK],
        **changes,
    }
    config = AccountsConfig.model_validate({"providers": [provider_config]})
    accounts_app.services.open_id.providers = config.build_providers_by_name(
        {"STUDIO_SECRET": "s3cret"}
    )
    accounts_app.services.sign_in.policy = config.sign_in_policy
