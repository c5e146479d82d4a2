"""What all of our Serve deployments have in common."""

from __future__ import annotations

from typing import TypedDict

from ray.serve.schema import LoggingConfig

__all__ = ["REPLICA"]


class _Options(TypedDict):
    health_check_period_s: float
    health_check_timeout_s: float
    logging_config: LoggingConfig


# Only by its checks does Serve hear that a replica was killed: with its ten seconds a service that
# has one replica stays away for up to ten before another starts. One that hangs is replaced when
# three checks in a row got no answer. Serve's line per request is dear on the hot path and says
# less than our access log.
REPLICA = _Options(
    health_check_period_s=2.0,
    health_check_timeout_s=10.0,
    logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
)
