"""A request on its way to an answer, and what it is entered into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from moyin.domain.chat import Image
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, ResponseConstraints
from moyin.domain.schemas import check_schemas
from moyin.errors import UnsupportedFeature
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.conversation import Conversation
from moyin.text.routing.ledger import Ledger
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.telemetry import Telemetry

__all__ = ["CallAccounting", "Hold", "PictureSource", "RoutedCall"]


class Hold(Enum):
    """How long a stream is held back before its client gets it."""

    NONE = "not"
    BEGINNING = "beginning"
    WHOLE = "whole"


class PictureSource(Protocol):
    """Fetches the pictures that a request names by URL."""

    async def fetch(self, urls: Iterable[str]) -> Mapping[str, Image]:
        """By URL; raises what the request is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallAccounting:
    """Where calls are entered.

    Attributes:
        record_usage: hears of the usage of complete answers: by model, for what needs.
        estimate_prompt_tokens: of a request, where the model's back end has not stated them: by model, for
            what needs.
    """

    ledger: Ledger
    telemetry: Telemetry
    record_usage: Callable[[str, Needs, Usage], None]
    estimate_prompt_tokens: Callable[[str, Needs], int]


# Not frozen: one is made per request, and its pictures may be put into it.
@dataclass(kw_only=True, slots=True)
class RoutedCall:
    """A request, whoever will answer it.

    Attributes:
        pictures: None: a call that names pictures by URL goes only to who fetches them itself.
        deadline: ``loop.time()`` at which the whole call must be over, fallbacks included.
        quality: how well each model would answer; None: quality is not weighed.
        is_repeat: the client comes back to an answer that did not help.
        is_learned_from: the router learns from it.
        is_transcribed: what is written in a stream is taken down, so that it can be checked.
        hold: how long a stream is held back until its answer can be judged.
    """

    codec: ProtocolCodec
    request: ParsedRequest
    needs: Needs
    context: RoutingContext
    accounting: CallAccounting
    pictures: PictureSource | None
    deadline: float
    traceparent: bytes | None = None
    quality: RequestQuality | None = None
    is_repeat: bool = False
    is_learned_from: bool = False
    is_transcribed: bool = False
    hold: Hold = Hold.NONE
    _schemas_checked: bool = False
    _constraints: ResponseConstraints | None = None
    _conversation: Conversation | None = None

    @property
    def constraints(self) -> ResponseConstraints:
        """The form that the answer must have."""
        constraints = self._constraints
        if constraints is None:
            constraints = self._constraints = self.request.constraints()
        return constraints

    @property
    def conversation(self) -> Conversation:
        """What its client said, read and hashed when it is first needed."""
        conversation = self._conversation
        if conversation is None:
            conversation = self._conversation = Conversation(self.context, self.request)
        return conversation

    def check_schemas(self) -> None:
        """See that the call's JSON schemas cost a server that makes grammars of them little.

        Raises:
            SchemaTooLarge, UnsupportedFeature: naming the field.
        """
        if not self._schemas_checked:
            check_schemas(self.request.schemas())
            self._schemas_checked = True

    async def fetch_pictures(self) -> None:
        """Put what the call names by URL into it."""
        urls = self.request.picture_urls
        if not urls:
            return
        if self.pictures is None:
            raise UnsupportedFeature("send pictures as base64, not by URL", field="messages")
        self.request = self.request.with_pictures(await self.pictures.fetch(urls))
