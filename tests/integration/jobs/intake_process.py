"""Runs an intake in a process that tests can kill: ``python -m … '<json of IntakeArgs>'``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from deployments.intake.config import IntakeArgs
from deployments.intake.deployment import open_workers
from moyin.domain.limits import PoolRules
from moyin.domain.serialization import encode
from moyin.errors import ServiceUnavailable
from moyin.render.comfyui.pool_client import RULES_PATH, PoolResponse
from moyin.settings import Settings


class AcceptingValidator:
    async def validate(
        self, pool: str, graph: Mapping[str, Any], targets: Any = None
    ) -> Mapping[str, Any]:
        return {}


class IdlePools:
    """Simulates pools without ComfyUI, which report only whose jobs they run."""

    def __init__(self, pools: Sequence[str]) -> None:
        self.pools = pools

    async def get(self, pool: str, path: str) -> PoolResponse:
        if path != RULES_PATH:
            raise ServiceUnavailable("no renderer is up")
        return PoolResponse(version="1", state="up", content=encode(PoolRules()))

    async def get_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        return {}

    async def find_executed(self, prompt_ids: Sequence[str]) -> set[str]:
        return set()


async def main() -> None:
    logging.basicConfig(level=logging.INFO)
    args = IntakeArgs.model_validate_json(sys.argv[1])
    async with open_workers(
        args, Settings(), os.environ, AcceptingValidator(), IdlePools(args.pools)
    ) as workers:
        print("up", flush=True)
        await asyncio.gather(*(worker.run() for worker in workers))


if __name__ == "__main__":
    asyncio.run(main())
