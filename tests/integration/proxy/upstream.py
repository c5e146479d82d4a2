"""A service for the proxy's tests, which runs in the test's process or in a separate one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import WSMsgType, web

from tests.stack import ROOT

CHUNK = b"x" * 65_536


class Service:
    """A service that behaves differently for each path, and records the requests it gets.

    Attributes:
        sent: the number of bytes of ``/flood`` that it has sent so far.
        taken: the number of bytes of ``/drain`` that it has read so far.
        failing: how many more requests to ``/flaky`` fail; above zero, ``/health`` responds with
            503.
    """

    def __init__(self, name: str = "one") -> None:
        self.name = name
        self.seen: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.sent = 0
        self.taken = 0
        self.go_on = asyncio.Event()
        self.failing = 0
        self.app = web.Application(client_max_size=2**30)
        self.app.router.add_get("/events", self._stream_events)
        self.app.router.add_get("/flood", self._send_flood)
        self.app.router.add_put("/drain", self._read_slowly)
        self.app.router.add_get("/silent", self._stay_silent)
        self.app.router.add_get("/moved", self._redirect)
        self.app.router.add_get("/broken", self._break_off)
        self.app.router.add_get("/socket", self._serve_socket)
        self.app.router.add_post("/go-on", self._release)
        self.app.router.add_route("*", "/health", self._answer_health)
        self.app.router.add_route("*", "/flaky", self._fail_sometimes)
        self.app.router.add_route("*", "/{path:.*}", self._echo)

    async def _echo(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        self.bodies.append(await request.read())
        headers = {
            "x-from": self.name,
            "x-moyin-cost-usd": "9",
            "connection": "x-private",
            "x-private": "1",
        }
        response = web.Response(body=self.bodies[-1] or b"hello", headers=headers)
        response.headers.add("set-cookie", "a=1")
        response.headers.add("set-cookie", "b=2")
        return response

    async def _stream_events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: first\n\n")
        await self.go_on.wait()
        await response.write(b"data: second\n\n")
        return response

    async def _release(self, request: web.Request) -> web.Response:
        """Set ``go_on``, so that waiting requests continue; for tests in another process."""
        self.go_on.set()
        return web.Response()

    async def _send_flood(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(int(request.query["chunks"])):
            await response.write(CHUNK)
            self.sent += len(CHUNK)
        return response

    async def _read_slowly(self, request: web.Request) -> web.Response:
        await self.go_on.wait()
        async for chunk in request.content.iter_any():
            self.taken += len(chunk)
        return web.Response(text=str(self.taken))

    async def _stay_silent(self, request: web.Request) -> web.StreamResponse:
        if "head" in request.query:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"and then nothing")
        await self.go_on.wait()
        return web.Response()

    async def _redirect(self, request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"location": request.query["to"]})

    async def _break_off(self, request: web.Request) -> web.StreamResponse:
        """Send a body that is shorter than its declared length."""
        self.seen.append(request)
        length = int(request.query["length"])
        response = web.StreamResponse(headers={"content-length": str(length)})
        await response.prepare(request)
        await response.write(b"x" * (length // 2))
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _fail_sometimes(self, request: web.Request) -> web.Response:
        """Close the connection without a response while ``failing`` is above zero."""
        self.seen.append(request)
        if self.failing > 0:
            self.failing -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.Response(text=self.name)

    async def _answer_health(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if self.failing else 200)

    async def _serve_socket(self, request: web.Request) -> web.WebSocketResponse:
        self.seen.append(request)
        socket = web.WebSocketResponse(protocols=("chat.v2",))
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                if message.data == "bye":
                    await socket.close(code=4242, message=b"as you like")
                    break
                await socket.send_str(f"{self.name}: {message.data}")
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data[::-1])
        self.bodies.append(str(socket.close_code).encode())
        return socket


@asynccontextmanager
async def serving(service: Service, port: int = 0) -> AsyncIterator[str]:
    """Serve a service, and yield its URL."""
    runner = web.AppRunner(service.app, shutdown_timeout=0.1, auto_decompress=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    assert site._server is not None
    yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    service.go_on.set()
    await runner.cleanup()


@asynccontextmanager
async def run_service_process(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the service in a separate process, which is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(port), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"up\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _serve_forever(port: int) -> None:
    async with serving(Service(str(port)), port):
        print("up", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve_forever(int(sys.argv[1])))
