"""Counts requests against limits and budgets in Valkey, atomically for all replicas.

A request of a caller with limits costs one round trip before it runs, and another after it ends if
it held a lease or a reservation. Requests of callers without limits cost none.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from importlib.resources import files
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from moyin.access.gatekeeper.budgets import BudgetReader, build_budget_state, build_key
from moyin.access.gatekeeper.job_reservations import JobReservationCounter
from moyin.domain.limits import JobReservation, Limit
from moyin.errors import BudgetExceeded, LimitExceeded, RateLimited, ServiceUnavailable
from moyin.settings import Settings
from moyin.store.valkey import ValkeyConnection

_log = logging.getLogger(__name__)
_NANO = 10**9
# Seconds within which the leases of a replica's requests expire if it dies.
_LEASE_SECONDS = 60.0
_RENEW_SECONDS = 20.0
_TIMEOUT_SECONDS = 2.0
_CONNECTIONS = 64
_SETTLE_PAUSES = (0.5, 2.0, 8.0)
_MESSAGES = {
    "requests": "the limit of {limit} requests per minute is reached",
    "tokens": "the limit of {limit} tokens per minute is reached",
    "concurrent": "the limit of {limit} concurrent requests is reached",
    "day": "the rest of the daily budget does not cover the maximum cost of this request",
    "month": "the rest of the monthly budget does not cover the maximum cost of this request",
}


class RequestMeter:
    """Counts the requests of one process in Valkey; each counted request is an `Admission`.

    The meter renews the leases of running requests, and settles their costs in the background.

    Args:
        rates_fail_open: True to allow requests that use no budget while Valkey is unavailable.
        budgets_fail_open: True to allow requests that use a budget while Valkey is unavailable.

    Attributes:
        budgets: reads the spent and reserved amounts.
        job_reservations: changes the amounts that jobs have reserved.
    """

    def __init__(
        self, redis_url: str, *, rates_fail_open: bool = True, budgets_fail_open: bool = False
    ) -> None:
        self._redis = redis.Redis.from_pool(
            redis.BlockingConnectionPool.from_url(
                redis_url,
                connection_class=ValkeyConnection,
                max_connections=_CONNECTIONS,
                timeout=_TIMEOUT_SECONDS,
                socket_connect_timeout=_TIMEOUT_SECONDS,
                socket_timeout=_TIMEOUT_SECONDS,
                # No retry after a timeout, because Valkey may have counted the request.
                retry=Retry(NoBackoff(), 1),
                retry_on_error=[RedisConnectionError],
            )
        )
        self.budgets = BudgetReader(self._redis)
        self.job_reservations = JobReservationCounter(self._redis)
        folder = files("moyin.access.gatekeeper") / "scripts"
        self._admit = self._redis.register_script((folder / "admit.lua").read_text())
        self._settle = self._redis.register_script((folder / "settle.lua").read_text())
        self._rates_fail_open = rates_fail_open
        self._budgets_fail_open = budgets_fail_open
        self._held_admissions: set[Admission] = set()
        self._renewal_task: asyncio.Task[None] | None = None
        self._settlement_tasks: set[asyncio.Task[None]] = set()

    async def admit(
        self, limits: Sequence[Limit], *, owner: str, usd: Decimal = Decimal(0), tokens: int = 0
    ) -> Admission:
        """Count a request, reserve its maximum cost, and return its `Admission`.

        Raises the errors of `Admission.reserve`.
        """
        admission = Admission(self, limits, owner)
        await admission.reserve(usd, tokens)
        return admission

    async def close(self) -> None:
        """Wait until ended requests are settled, then close the connections."""
        if self._renewal_task is not None:
            self._renewal_task.cancel()
            await asyncio.gather(self._renewal_task, return_exceptions=True)
        await asyncio.gather(*self._settlement_tasks, return_exceptions=True)
        await self._redis.aclose()

    async def run_admission_script(self, keys: list[str], arguments: list[Any]) -> Any:
        """Run the Lua script that counts a request if no limit is exceeded, and return its reply.

        Args:
            keys: the Valkey keys of the request's counters and budgets.
            arguments: the limits and amounts, in the order that the script expects.
        """
        return await self._admit(keys=keys, args=arguments)

    def may_pass_unmetered(self, limits_spending: bool, error: RedisError) -> bool:
        """Log an error of Valkey; return True if the request is allowed without being counted.

        Args:
            limits_spending: True if the request uses a budget. Then ``budgets_fail_open`` decides,
                otherwise ``rates_fail_open``.
        """
        _log.warning(
            "could not count a request against its limits in Valkey: %s: %s",
            type(error).__name__,
            error,
        )
        return self._budgets_fail_open if limits_spending else self._rates_fail_open

    def start_renewing(self, admission: Admission) -> None:
        """Renew the lease of a request until `settle` is called for it."""
        self._held_admissions.add(admission)
        if self._renewal_task is None or self._renewal_task.done():
            self._renewal_task = asyncio.create_task(self._renew_while_held())

    def settle(self, admission: Admission, keys: list[str], arguments: list[Any]) -> None:
        """Release a request's lease and the unused part of its reservation, in the background.

        Args:
            keys: the Valkey keys of the request's counters and budgets.
            arguments: the arguments of the Lua script that settles the request.
        """
        self._held_admissions.discard(admission)
        task = asyncio.create_task(self._settle_with_retries(keys, arguments))
        self._settlement_tasks.add(task)
        task.add_done_callback(self._settlement_tasks.discard)

    async def _settle_with_retries(self, keys: list[str], arguments: list[Any]) -> None:
        for pause in (*_SETTLE_PAUSES, None):
            try:
                await self._settle(keys=keys, args=arguments)
                return
            except RedisError as error:
                if pause is None:
                    _log.error(
                        "could not settle the reservation %s in Valkey, so it stays booked in full: %s",
                        keys,
                        error,
                    )
                    return
                await asyncio.sleep(pause)

    async def _renew_while_held(self) -> None:
        while self._held_admissions:
            await asyncio.sleep(_RENEW_SECONDS)
            try:
                # Valkey's clock is used, as in the scripts, because the clocks of replicas may
                # differ.
                now_seconds, _ = await self._redis.time()
                expires_ms = 1000 * (now_seconds + int(_LEASE_SECONDS))
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for admission in self._held_admissions:
                        for key in admission.leases:
                            pipeline.zadd(key, {admission.lease: expires_ms}, xx=True)
                            pipeline.pexpire(key, int(2000 * _LEASE_SECONDS))
                    await pipeline.execute()
            except RedisError as error:
                _log.warning("could not renew the leases of running requests in Valkey: %s", error)


def create_meter(settings: Settings) -> RequestMeter:
    """Create a meter with the Valkey URL and the failure modes in ``settings``."""
    return RequestMeter(
        settings.redis_url,
        rates_fail_open=settings.rates_fail_open,
        budgets_fail_open=settings.budgets_fail_open,
    )


class Admission:
    """Counts one request against its limits: `reserve` before it runs, `release` after it ends.

    Attributes:
        is_reserved: True after `reserve` was called.
        headers: the ``RateLimit-*`` headers of the response, which are empty until `reserve`.
        lease: the id under which the request counts as running.
    """

    def __init__(self, meter: RequestMeter, limits: Sequence[Limit], owner: str) -> None:
        self._meter = meter
        self._owner = owner
        self._limits = [limit for limit in limits if limit.limits_requests]
        # All keys have one hash tag, so that a cluster keeps them on one node.
        self._keys = [
            build_key(owner, limit.subject, kind)
            for limit in self._limits
            for kind in ("requests", "tokens", "leases", "money")
        ]
        self._is_held = False
        self._spent_nano_usd = self._spent_tokens = self._reserved_tokens = 0
        self._period = ("", "")
        self.is_reserved = False
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        self.lease = secrets.token_hex(8)

    @property
    def limits_spending(self) -> bool:
        """True if a limit counts money or tokens, so that `reserve` must get the maximum cost."""
        return any(limit.has_budget or limit.tokens_per_minute for limit in self._limits)

    @property
    def leases(self) -> list[str]:
        """The Valkey keys that count running requests, one per limit of concurrent requests."""
        return [
            key
            for key, limit in zip(self._keys[2::4], self._limits, strict=True)
            if limit.concurrent_requests is not None
        ]

    async def reserve(self, usd: Decimal = Decimal(0), tokens: int = 0) -> None:
        """Count the request and reserve its maximum cost in US dollars and tokens; call this once.

        Raises:
            RateLimited: too many requests or tokens in this minute, or too many at the same time.
            BudgetExceeded: the rest of the daily or monthly budget does not cover ``usd``.
            ServiceUnavailable: Valkey is unavailable, and the settings reject requests then.
        """
        self.is_reserved = True
        if not self._limits:
            return
        nano_usd = int((usd * _NANO).to_integral_value(ROUND_CEILING))
        now = datetime.now(UTC)
        self._period = (f"{now:%Y-%m-%d}", f"{now:%Y-%m}")
        lease_ms = int(_LEASE_SECONDS * 1000)
        arguments: list[Any] = [self.lease, lease_ms, nano_usd, tokens, *self._period]
        for limit in self._limits:
            arguments += _build_script_arguments(limit)
        limits_spending = nano_usd > 0 and any(limit.has_budget for limit in self._limits)
        reply = asyncio.ensure_future(self._meter.run_admission_script(self._keys, arguments))
        try:
            # Shielded, because a cancelled request may have been counted and must then be released.
            is_admitted, *details = await asyncio.shield(reply)
        except asyncio.CancelledError:
            reply.add_done_callback(
                lambda finished_reply: self._release_cancelled(finished_reply, tokens)
            )
            raise
        except RedisError as error:
            self._hold_after_timeout(error)
            if self._meter.may_pass_unmetered(limits_spending, error):
                return
            self.release()
            raise ServiceUnavailable(
                "limits and budgets cannot be checked at the moment; try again", retry_after=1
            ) from error
        if not is_admitted:
            raise self._create_error(*details)
        self.headers = _build_headers(*details)
        self._mark_held(tokens)

    def build_job_reservation(self, usd: Decimal) -> JobReservation | None:
        """Return the reservation that `reserve` made in budgets, to hand it over to a job.

        The job then ends the reservation, so the caller must call `release` only if the job is
        rejected. The result is None if nothing was reserved, because the settings allow requests
        while Valkey is unavailable.

        Args:
            usd: the reserved amount in US dollars.
        """
        if not self._is_held:
            return None
        day, month = self._period
        return JobReservation(
            id=self.lease,
            owner=self._owner,
            subjects=tuple(limit.subject for limit in self._limits if limit.has_budget),
            usd=usd,
            day=day,
            month=month,
        )

    def record(self, usd: Decimal, tokens: int) -> None:
        """Add an amount, in US dollars and tokens, to the actual cost of the request."""
        self._spent_nano_usd += int((usd * _NANO).to_integral_value(ROUND_CEILING))
        self._spent_tokens += tokens

    def release(self) -> None:
        """Release the lease and the unused part of the reservation; call this when the request ends."""
        if not self._is_held:
            return
        self._is_held = False
        tokens = self._spent_tokens - self._reserved_tokens
        self._meter.settle(
            self, self._keys, [self.lease, self._spent_nano_usd, tokens, *self._period]
        )

    def _mark_held(self, tokens: int) -> None:
        leases = self.leases
        self._reserved_tokens = tokens
        self._is_held = bool(leases) or self.limits_spending
        if leases:
            self._meter.start_renewing(self)

    def _hold_after_timeout(self, error: BaseException) -> None:
        """After a timeout, treat the request as counted, so that `release` settles it.

        Valkey may still run the script later, and the reservation would stay until the month ends.
        Settling a reservation that was never made changes no budget.
        """
        if isinstance(error, RedisTimeoutError):
            self._mark_held(0)

    def _release_cancelled(self, reply: asyncio.Future[Any], tokens: int) -> None:
        """Release the lease and reservation of a request that was cancelled while it was counted.

        Args:
            reply: the finished reply of the Lua script that counts requests.
            tokens: the tokens that the script reserved.
        """
        if (error := reply.exception()) is not None:
            self._hold_after_timeout(error)
        elif reply.result()[0]:
            self._mark_held(tokens)
        self.release()

    def _create_error(
        self,
        index: int,
        limit_kind: bytes,
        wait_ms: int,
        limit_value: int,
        booked_nano_usd: bytes = b"0",
        reserved_nano_usd: bytes = b"0",
    ) -> LimitExceeded:
        kind, limit = limit_kind.decode(), self._limits[index]
        subject = limit.subject.partition(":")[0]
        message = f"{_MESSAGES[kind].format(limit=limit_value)} (limit of the {subject})"
        if kind in ("day", "month"):
            state = build_budget_state(limit, kind, int(booked_nano_usd), int(reserved_nano_usd))
            message += "; wait until the budget resets, or ask an administrator to raise it"
            return BudgetExceeded(message, details=state.to_details())
        retry_seconds = wait_ms / 1000
        message += f"; try again in {retry_seconds:g} s"
        details = {"limit": _FIELDS[kind], "of": subject}
        headers = _build_rate_limit_headers(limit_value, 0, wait_ms) if kind == "requests" else {}
        return RateLimited(message, retry_after=retry_seconds, details=details, headers=headers)


_FIELDS = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "concurrent": "concurrent_requests",
}


def _build_script_arguments(limit: Limit) -> list[Any]:
    limit_values = (
        limit.requests_per_minute,
        limit.tokens_per_minute,
        limit.concurrent_requests,
        None if limit.usd_per_day is None else int(limit.usd_per_day * _NANO),
        None if limit.usd_per_month is None else int(limit.usd_per_month * _NANO),
    )
    return ["" if limit_value is None else limit_value for limit_value in limit_values]


def _build_rate_limit_headers(limit: int, remaining: int, reset_ms: int) -> dict[str, str]:
    return {
        "ratelimit-limit": str(limit),
        "ratelimit-remaining": str(remaining),
        "ratelimit-reset": str(math.ceil(reset_ms / 1000)),
        "ratelimit-policy": f"{limit};w=60",
    }


def _build_headers(limit: int, remaining: int, reset_ms: int) -> tuple[tuple[bytes, bytes], ...]:
    if not limit:
        return ()
    headers = _build_rate_limit_headers(limit, remaining, reset_ms)
    return tuple((name.encode(), value.encode()) for name, value in headers.items())
