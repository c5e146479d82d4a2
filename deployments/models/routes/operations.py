"""Serves moderations, rerankings, speech, transcriptions and edits of pictures in plain ASGI."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from deployments.models.routes.calls import read_body, send_answer
from deployments.models.routes.images import PictureRenderer
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import ASGIApp, Receive, Scope, Send, get_header
from moyin.access.gatekeeper.authorization import get_admission
from moyin.domain.operation import Operation
from moyin.errors import InvalidRequest, ModelNotFound
from moyin.http.multipart import FormFile, MultipartForm
from moyin.jobs.images import ImageJobs
from moyin.text.audio import read_duration_seconds
from moyin.text.protocol.openai.images import parse_image_edit
from moyin.text.protocol.openai.operations import (
    OperationRequest,
    parse_moderation,
    parse_rerank,
    parse_speech,
)
from moyin.text.protocol.openai.uploads import (
    ImageEditRequest,
    ImageVariationRequest,
    TranscriptionRequest,
    TranslationRequest,
)
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.operation_router import OperationRouter

# More parts than any call has: OpenAI accepts sixteen pictures and a mask.
_MAX_FILES = 20
_MAX_FIELDS = 100
_MAX_FIELD_BYTES = 256 * 1024
_FORM_TYPE = "multipart/form-data"


class OperationRoute:
    """Handles the requests of one operation, such as reranking, that have a JSON body.

    The gatekeeper renders errors, and cancels the task when the client disconnects.
    """

    def __init__(
        self, router: OperationRouter, parse_request: Callable[[bytes], OperationRequest]
    ) -> None:
        self._router = router
        self._parse_request = parse_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is not None:
            await _send_answer(self._router, self._parse_request(body), scope, send)


class ImageEditRoute:
    """Handles edits of pictures, by a model that has this ability or else by a render template.

    Args:
        renderer: renders the pictures with a template.
    """

    def __init__(
        self, router: OperationRouter, images: ImageJobs, renderer: PictureRenderer
    ) -> None:
        self._router = router
        self._images = images
        self._renderer = renderer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with receive_form(scope, receive) as received_form:
            if received_form is None:
                return
            form, model = received_form[0], received_form[0].get("model")
            if model is None or self._router.knows_model(model):
                await _send_answer(self._router, ImageEditRequest(form), scope, send)
                return
            edit = parse_image_edit(form)
            if (admission := get_admission(scope)) is not None:
                # Limits are checked before the job is submitted.
                await admission.reserve()
            try:
                response = await self._renderer.respond(
                    Request(scope), edit.body, partial(self._images.submit_edit, edit=edit)
                )
            except ModelNotFound:
                # No template has this name. If no model for edits is configured, the error names
                # the setting.
                self._router.require_operation(Operation.IMAGE_EDIT)
                raise
            await response(scope, receive, send)


class UploadRoute:
    """Handles the requests of one operation, such as transcription, that upload files.

    A file of more than 1 MiB is stored on disk until the request ends, and sent from there in
    pieces.
    """

    def __init__(
        self,
        router: OperationRouter,
        build_request: Callable[[MultipartForm, list[UploadFile]], Awaitable[OperationRequest]],
    ) -> None:
        self._router = router
        self._build_request = build_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with receive_form(scope, receive) as received_form:
            if received_form is not None:
                request = await self._build_request(*received_form)
                await _send_answer(self._router, request, scope, send)


def new_operation_routes(
    router: OperationRouter, images: ImageJobs, renderer: PictureRenderer
) -> dict[str, ASGIApp]:
    """Return the routes of operations by their path below ``/v1``."""
    rerank = OperationRoute(router, parse_rerank)
    return {
        "/moderations": OperationRoute(router, parse_moderation),
        "/rerank": rerank,
        # llama.cpp's alternative path of the call.
        "/reranking": rerank,
        "/audio/speech": OperationRoute(router, parse_speech),
        "/audio/transcriptions": UploadRoute(router, _build_transcription),
        "/audio/translations": UploadRoute(router, _build_translation),
        "/images/edits": ImageEditRoute(router, images, renderer),
        "/images/variations": UploadRoute(router, _build_image_variation),
    }


async def _send_answer(
    router: OperationRouter, request: OperationRequest, scope: Scope, send: Send
) -> None:
    request_context = context(scope)
    routing_context = RoutingContext(
        request_id=request_context.request_id,
        owner=request_context.caller.owner,
        headers=scope["headers"],
        budget=get_admission(scope),
        key_id=request_context.caller.key_id,
    )
    await send_answer(await router.answer(request, routing_context), send)


async def _build_transcription(
    form: MultipartForm, files: list[UploadFile]
) -> TranscriptionRequest:
    return TranscriptionRequest(form, await _measure_seconds(files))


async def _build_translation(form: MultipartForm, files: list[UploadFile]) -> TranslationRequest:
    return TranslationRequest(form, await _measure_seconds(files))


async def _build_image_variation(form: MultipartForm, _: list[UploadFile]) -> ImageVariationRequest:
    return ImageVariationRequest(form)


async def _measure_seconds(files: list[UploadFile]) -> float | None:
    return await read_duration_seconds(files[0].file, files[0].filename or "") if files else None


@asynccontextmanager
async def receive_form(
    scope: Scope, receive: Receive
) -> AsyncIterator[tuple[MultipartForm, list[UploadFile]] | None]:
    """Yield the received form and its files, and delete the files afterwards.

    Yields None if the client disconnects while it sends the form.

    Raises:
        InvalidRequest: the body is not a valid form, or has too many or too long fields.
    """
    content_type = (get_header(scope, b"content-type") or "").partition(";")[0].strip().lower()
    if content_type != _FORM_TYPE:
        raise InvalidRequest(
            f"Content-Type must be {_FORM_TYPE}, with the files in parts of the form",
            field="Content-Type",
        )
    # The form's files are received to disk.
    context(scope).keeps_body = False
    is_complete = False

    async def read_chunks() -> AsyncGenerator[bytes, None]:
        nonlocal is_complete
        while not is_complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            is_complete = not message.get("more_body", False)
            yield message.get("body", b"")

    parser = MultiPartParser(
        Headers(scope=scope),
        read_chunks(),
        max_files=_MAX_FILES,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form_data = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the body is not a valid form: {error.message}") from None
    try:
        fields = [
            (name, value) for name, value in form_data.multi_items() if isinstance(value, str)
        ]
        files = [
            (n, value) for n, value in form_data.multi_items() if isinstance(value, UploadFile)
        ]
        form = MultipartForm(
            fields=fields,
            files=[
                FormFile(
                    field=name,
                    name=file.filename or "",
                    content_type=file.content_type or "",
                    size=file.size or 0,
                    content=file,
                )
                for name, file in files
            ],
        )
        yield (form, [file for _, file in files]) if is_complete else None
    finally:
        await form_data.close()
