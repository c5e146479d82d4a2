"""The smallest app that a stack can deploy: it answers, and it can refuse to start."""

from pydantic import BaseModel, ConfigDict
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse


class TinyArgs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    broken: bool = False


class Tiny:
    def __init__(self, broken: bool) -> None:
        if broken:
            raise RuntimeError("this app is broken on purpose")

    async def __call__(self, request: Request) -> JSONResponse:
        return JSONResponse({"path": request.url.path})


def build(args: TinyArgs) -> serve.Application:
    deployment = serve.deployment(name="Tiny", ray_actor_options={"num_cpus": 0.1})(Tiny)
    return deployment.bind(args.broken)
