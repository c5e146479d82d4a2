"""Active health: asks upstreams whether they are well, for as long as their route stands."""

from __future__ import annotations

import asyncio

import aiohttp
from yarl import URL

from moyin.proxy.pool import Member, Pool
from moyin.proxy.route import HealthCheck

__all__ = ["watch"]


async def watch(session: aiohttp.ClientSession, pool: Pool) -> None:
    """Check the pool's members until cancelled."""
    check = pool.route.health
    if check is None:
        return
    while True:
        await asyncio.gather(*(_check(session, member, check) for member in pool.members))
        await asyncio.sleep(check.interval)


async def _check(session: aiohttp.ClientSession, member: Member, check: HealthCheck) -> None:
    try:
        async with session.get(
            URL(member.upstream.url + check.path, encoded=True),
            timeout=aiohttp.ClientTimeout(total=check.timeout),
            allow_redirects=False,
        ) as response:
            passed = response.status < 400
    except (aiohttp.ClientError, TimeoutError, OSError):
        passed = False
    member.checked(passed, check)
