"""Runs an app that enforces limits: ``python -m tests.integration.access.limited_app REDIS_URL``.

It prints its port. ``POST /admit`` counts a request against the limits in its body; the response
says whether the request was admitted.
"""

from __future__ import annotations

import asyncio
import random
import sys
from decimal import Decimal
from typing import Any

from aiohttp import web

from moyin.access.gatekeeper.limits import RequestMeter
from moyin.domain.limits import Limit
from moyin.errors import LimitExceeded


def main() -> None:
    meter = RequestMeter(sys.argv[1])

    async def admit(request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        amounts_usd = {name: Decimal(body.pop(name, "0")) for name in ("reserve", "spend")}
        limit = Limit(**body | {n: Decimal(v) for n, v in body.items() if n.startswith("usd")})
        try:
            admission = await meter.admit([limit], owner="studio", usd=amounts_usd["reserve"])
        except LimitExceeded as error:
            return web.json_response({"code": error.code}, status=429)
        if amounts_usd["reserve"]:
            await asyncio.sleep(random.uniform(0, 0.01))
            admission.record(amounts_usd["spend"], 0)
        admission.release()
        return web.json_response(
            {"headers": {k.decode(): v.decode() for k, v in admission.headers}}
        )

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/admit", admit)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()
        await meter.close()

    asyncio.run(run())


if __name__ == "__main__":
    main()
