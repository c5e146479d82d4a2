"""Tests that edits of pictures by a template are checked against limits before anything renders."""

from __future__ import annotations

from typing import Any, cast

import pytest

from deployments.models.routes.operations import ImageEditRoute
from moyin.access.gatekeeper import RequestContext
from moyin.access.gatekeeper.authorization import set_admission
from moyin.errors import RateLimited

_BODY = b"".join(
    b'--b\r\ncontent-disposition: form-data; name="' + name + b'"\r\n\r\n' + value + b"\r\n"
    for name, value in (
        (b"model", b"template"),
        (b"prompt", b"p"),
        (b'image"; filename="a.png', b"picture"),
    )
)


class ExceededAdmission:
    async def reserve(self) -> None:
        raise RateLimited("too many requests")


class NoModels:
    def knows_model(self, name: str) -> bool:
        return False


class NeverRenders:
    async def respond(self, *_: Any) -> None:
        raise AssertionError("the picture is rendered beyond the limit")


class NeverSubmits:
    async def submit_edit(self, *_: Any) -> None:
        raise AssertionError


async def test_a_template_renders_no_edit_beyond_the_limits() -> None:
    content_type = (b"content-type", b"multipart/form-data; boundary=b")
    scope: dict[str, Any] = {
        "type": "http",
        "headers": [content_type],
        "moyin": RequestContext(request_id="r", identity=None),
    }
    set_admission(scope, cast(Any, ExceededAdmission()))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": _BODY + b"--b--\r\n"}

    async def send(_: Any) -> None:
        raise AssertionError

    dependencies: Any = NoModels(), NeverSubmits(), NeverRenders()
    with pytest.raises(RateLimited):
        await ImageEditRoute(*dependencies)(scope, receive, send)
