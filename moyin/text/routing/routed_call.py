"""Holds the state of one routed request and the services that record it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from moyin.domain.chat import Image
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, ResponseConstraints
from moyin.domain.schemas import check_schemas
from moyin.errors import UnsupportedFeature
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.conversation import Conversation
from moyin.text.routing.decision import Candidate
from moyin.text.routing.ledger import Ledger
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.telemetry import Telemetry

__all__ = ["AnswerSampler", "CallAccounting", "PictureSource", "RoutedCall", "StreamHold"]


class StreamHold(Enum):
    """Sets how much of a stream is held back for checks before the client gets it."""

    NONE = "not"
    BEGINNING = "beginning"
    WHOLE = "whole"


class PictureSource(Protocol):
    """Fetches the pictures that a request names by URL."""

    async def fetch(self, urls: Iterable[str]) -> Mapping[str, Image]:
        """Return the pictures by URL; raise the error for the client when one cannot be fetched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallAccounting:
    """Groups the services that record what calls use.

    Attributes:
        record_usage: takes the usage of complete answers: model name, needs, usage.
        estimate_prompt_tokens: estimates the prompt's tokens where the back end has not reported
            them: model name, needs.
    """

    ledger: Ledger
    telemetry: Telemetry
    record_usage: Callable[[str, Needs, Usage], None]
    estimate_prompt_tokens: Callable[[str, Needs], int]


# Not frozen: freezing doubles the cost of creating one per request, and pictures are added to it.
@dataclass(kw_only=True, slots=True)
class RoutedCall:
    """Holds one request while the router finds an answer for it.

    Attributes:
        pictures: None: requests with picture URLs go only to back ends that fetch them.
        deadline: ``loop.time()`` at which the whole call must end, fallbacks included.
        quality: estimates how well each model would answer; None: quality is not weighed.
        is_repeat: the client returns to an earlier answer that did not help.
        is_learned_from: the router learns from this request.
        is_transcribed: the text of a stream is recorded, so that it can be checked.
        hold: how much of a stream is held back until its answer can be checked.
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
    hold: StreamHold = StreamHold.NONE
    _schemas_checked: bool = False
    _constraints: ResponseConstraints | None = None
    _conversation: Conversation | None = None

    @property
    def constraints(self) -> ResponseConstraints:
        """The constraints that the request sets for its answer."""
        constraints = self._constraints
        if constraints is None:
            constraints = self._constraints = self.request.constraints()
        return constraints

    @property
    def conversation(self) -> Conversation:
        """The client's messages, read and hashed on first use."""
        conversation = self._conversation
        if conversation is None:
            conversation = self._conversation = Conversation(self.context, self.request)
        return conversation

    def check_schemas(self) -> None:
        """Check that the request's JSON schemas are cheap to compile into grammars.

        Raises:
            SchemaTooLarge, UnsupportedFeature: naming the field.
        """
        if not self._schemas_checked:
            check_schemas(self.request.schemas())
            self._schemas_checked = True

    async def fetch_pictures(self) -> None:
        """Replace picture URLs in the request by the pictures."""
        urls = self.request.picture_urls
        if not urls:
            return
        if self.pictures is None:
            raise UnsupportedFeature(
                "pictures by URL are not supported here: send them as base64", field="messages"
            )
        self.request = self.request.with_pictures(await self.pictures.fetch(urls))


class AnswerSampler(Protocol):
    """Samples answers for the judge. Runs on the hot path, so it must not do work there."""

    def sample(self, call: RoutedCall, candidates: Sequence[Candidate], answer: Answer) -> Answer:
        """Return the answer for the client, possibly wrapped to record it.

        Args:
            candidates: of the routing decision, in the order in which they would be tried.
        """
