"""Defines the state of a request while it is routed, and the services that account for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from moyin.domain.chat import Image
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, ResponseConstraints
from moyin.store.usage import UsageEntry
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.conversation import Conversation
from moyin.text.routing.decision import Candidate
from moyin.text.routing.ledger import Ledger
from moyin.text.routing.request_gaps import new_picture_url_error
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.telemetry import Telemetry
from moyin.text.routing.tool_schemas import limit_schemas


class StreamHold(Enum):
    """Part of a stream that is held back for checks before the client receives it."""

    NONE = "none"
    BEGINNING = "beginning"
    WHOLE = "whole"


class PictureSource(Protocol):
    """Service that fetches the pictures that a request references by URL."""

    async def fetch(self, urls: Iterable[str]) -> Mapping[str, Image]:
        """Return the pictures by URL; raise a `MoyinError` for the client if one is unusable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallAccounting:
    """Services that record the usage of calls; all calls of a router share them.

    Attributes:
        record_usage: records the usage of a complete answer, given the model's name, the request's
            needs and the usage.
        estimate_prompt_tokens: returns the estimated tokens of a prompt, given the model's name and
            the request's needs, for back ends that do not report them.
    """

    ledger: Ledger
    telemetry: Telemetry
    record_usage: Callable[[str, Needs, Usage], None]
    estimate_prompt_tokens: Callable[[str, Needs], int]


# Not frozen: freezing doubles the cost of creating one per request, and pictures are added to it.
@dataclass(kw_only=True, slots=True)
class RoutedCall:
    """One request while the router calls candidates for it.

    Attributes:
        needs: abilities and tokens that the request needs.
        pictures: fetches picture URLs. If it is None, only back ends that fetch pictures
            themselves can answer requests with picture URLs.
        deadline: the ``loop.time()`` by which the request must end, including fallbacks.
        quality: quality estimates of the request; None if quality is not weighed.
        omitted: abilities, such as ``tools``, whose fields were removed from the request.
        is_repeat: True if the request shows that an earlier answer did not help.
        is_learned_from: True if the router learns from this request.
        is_transcribed: True if the text of a stream is recorded for checks.
        hold: part of a stream that is held back for checks.
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
    omitted: tuple[str, ...] = ()
    is_repeat: bool = False
    is_learned_from: bool = False
    is_transcribed: bool = False
    hold: StreamHold = StreamHold.NONE
    _schemas_checked: bool = False
    _is_recorded: bool = False
    _failure: UsageEntry | None = None
    _constraints: ResponseConstraints | None = None
    _conversation: Conversation | None = None

    @property
    def constraints(self) -> ResponseConstraints:
        """The constraints on the answer, such as JSON, which are read on first use."""
        constraints = self._constraints
        if constraints is None:
            constraints = self._constraints = self.request.derive_constraints()
        return constraints

    @property
    def conversation(self) -> Conversation:
        """The client's messages, which are read and hashed on first use."""
        conversation = self._conversation
        if conversation is None:
            conversation = self._conversation = Conversation(self.context, self.request)
        return conversation

    def record(self, entry: UsageEntry) -> None:
        """Add the entry of an attempt to the ledger."""
        self._is_recorded = True
        (self.context.record_usage or self.accounting.ledger.record)(entry)

    def note_failure(self, entry: UsageEntry) -> None:
        """Keep the ledger entry of a failed attempt that is not billed, until `record_failure`."""
        self._failure = entry

    def record_failure(self) -> None:
        """Add the last unbilled failed attempt to the ledger, if no other attempt was added.

        The ledger then shows each request that failed at all candidates, but not the unbilled failed
        attempts of a request that succeeded.
        """
        if self._failure is not None and not self._is_recorded:
            self.record(self._failure)

    def check_schemas(self) -> None:
        """Make the request's JSON schemas cheap to compile into grammars; runs once per request.

        Raises:
            SchemaTooLarge, UnsupportedFeature: a schema is too expensive; the error names the
                field.
        """
        if not self._schemas_checked:
            self.request = limit_schemas(self.codec, self.request)
            self._schemas_checked = True

    async def fetch_pictures(self) -> None:
        """Replace the picture URLs in the request by the fetched pictures."""
        urls = self.request.picture_urls
        if not urls:
            return
        if self.pictures is None:
            raise new_picture_url_error()
        self.request = self.request.with_pictures(await self.pictures.fetch(urls))


class AnswerSampler(Protocol):
    """Sampler that selects answers for the judge; it must be fast, because requests wait for it."""

    def sample(self, call: RoutedCall, candidates: Sequence[Candidate], answer: Answer) -> Answer:
        """Return the answer for the client, wrapped in a recorder if it is selected for the judge.

        Args:
            candidates: the candidates of the routing decision, in the order of their ranks.
        """
