"""The smallest app that a stack can deploy; a test can make it fail at its start."""

import redis.asyncio as redis
from pydantic import BaseModel, ConfigDict
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from moyin.settings import Settings


class TinyArgs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    broken: bool = False


class Tiny:
    def __init__(self, broken: bool) -> None:
        if broken:
            raise RuntimeError("this app is broken on purpose")

    async def __call__(self, request: Request) -> JSONResponse:
        body: dict[str, object] = {"path": request.url.path}
        if request.url.path == "/valkey":
            async with redis.Redis.from_url(Settings().redis_url) as valkey:
                body["valkey"] = await valkey.ping()
        return JSONResponse(body)


def build(args: TinyArgs) -> serve.Application:
    deployment = serve.deployment(name="Tiny", ray_actor_options={"num_cpus": 0.1})(Tiny)
    return deployment.bind(args.broken)
