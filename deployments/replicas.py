"""Holds the options that all of our Serve deployments share."""

from __future__ import annotations

from typing import TypedDict

from ray.serve.schema import LoggingConfig

__all__ = ["REPLICA"]


class _Options(TypedDict):
    """Options of ``serve.deployment``."""

    health_check_period_s: float
    health_check_timeout_s: float
    logging_config: LoggingConfig


# Serve notices a killed replica by its health checks only. With the default of ten seconds a service
# with one replica would be unavailable for up to ten seconds before another starts. A replica that
# hangs is replaced after three checks without an answer. Serve's own access log is costly on the hot
# path and says less than ours.
REPLICA = _Options(
    health_check_period_s=2.0,
    health_check_timeout_s=10.0,
    logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
)
