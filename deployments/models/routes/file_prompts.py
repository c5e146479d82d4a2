"""Embeds stored files in the chat completion requests that reference them."""

from __future__ import annotations

from deployments.models.routes.calls import CallRoute
from deployments.models.routes.deferral import JobSubmitter
from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import Scope
from moyin.http.validation import validate
from moyin.text.prompt_files import FILE_ID_MARKER, PromptFiles
from moyin.text.protocol.codec import ParsedRequest
from moyin.text.protocol.openai.codec import OpenAICodec, ParsedChatRequest
from moyin.text.protocol.openai.wire import ChatBody
from moyin.text.routing.router import Router


class ChatRoute(CallRoute):
    """Handles chat completions, and embeds the stored files that a request references.

    A request that becomes a job keeps the ids; the files are read when the job runs.
    """

    def __init__(
        self, text_router: Router, job_submitter: JobSubmitter, prompt_files: PromptFiles
    ) -> None:
        super().__init__(OpenAICodec(), text_router, job_submitter)
        self._prompt_files = prompt_files

    async def embed_files(self, call: ParsedRequest, scope: Scope) -> ParsedRequest:
        if FILE_ID_MARKER not in call.raw:
            return call
        owner = context(scope).owner
        data, body = await self._prompt_files.embed_in_chat(owner, call.data, call.raw)
        return ParsedChatRequest(body, data, validate(ChatBody, data))
