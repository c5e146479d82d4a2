"""The accounts app with a deliberate memory leak at every request."""

# No `from __future__ import annotations` here, for the reason that deployments.accounts.builder has.

from datetime import timedelta
from typing import Any

from ray import serve

from deployments.accounts.builder import AccountsArgs
from deployments.accounts.config import AccountsConfig
from deployments.accounts.deployment import Accounts
from deployments.replicas import REPLICA_OPTIONS

_LEAK_BYTES = 8 * 2**20


class LeakyAccounts(Accounts):
    """Behaves like `Accounts`, but leaks memory at every request."""

    def __serve_build_asgi_app__(self) -> Any:
        app = super().__serve_build_asgi_app__()
        leaked_blocks = []

        async def leak_memory(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                leaked_blocks.append(b"\1" * _LEAK_BYTES)
            await app(scope, receive, send)

        return leak_memory


def build(args: AccountsArgs) -> serve.Application:
    deployment = serve.deployment(
        name="Accounts",
        max_ongoing_requests=500,
        user_config=AccountsConfig().model_dump(mode="json"),
        **REPLICA_OPTIONS,
    )(serve.ingress()(LeakyAccounts))
    return deployment.bind(
        timedelta(minutes=args.access_token_minutes), timedelta(days=args.session_days)
    )
