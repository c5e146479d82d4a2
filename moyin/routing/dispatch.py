"""One text request from its parsed call to its answer: choose, ask, fall back."""

from __future__ import annotations

from moyin.errors import BackendRejected, MoyinError
from moyin.protocols.dialect import Call, Dialect
from moyin.routing.attempt import Answer, Asker, Attempt, presentable
from moyin.routing.bookkeeping import Ledger, today
from moyin.routing.choice import Decision, decide
from moyin.routing.fleet import Fleet
from moyin.routing.history import OutputHistory

__all__ = ["Dispatcher"]


class Dispatcher:
    """Answers text requests.

    Attributes:
        fleet: may be replaced at any time; requests under way keep the one they began with.
    """

    def __init__(self, fleet: Fleet, ledger: Ledger) -> None:
        self.fleet = fleet
        self._ledger = ledger
        self._history = OutputHistory()

    def decide(self, dialect: Dialect, call: Call) -> Decision:
        """Who could answer, without asking anybody.

        Raises:
            ModelNotFound: nothing has the name that the client asks for.
        """
        fleet = self.fleet
        return decide(
            fleet.catalog.find(call.model),
            call.needs(),
            standing=fleet.standing,
            expected_output=self._history.expect,
            day=today(),
            wire=dialect.wire,
        )

    async def answer(self, dialect: Dialect, call: Call, asker: Asker) -> Answer:
        """The first answer that a candidate gives.

        Raises:
            ModelNotFound, ServiceUnavailable: nobody can be asked.
            UnsupportedFeature, ContextTooLong, BackendRejected: the request is at fault.
            BackendError, Overloaded: the last candidate's failure.
        """
        fleet, failure = self.fleet, None
        decision = self.decide(dialect, call)
        for candidate in decision.candidates:
            lane = fleet.lanes[candidate.offer.backend]
            if not lane.enter():
                continue
            attempt = Attempt(
                dialect=dialect,
                call=call,
                asker=asker,
                lane=lane,
                candidate=candidate,
                route=_route(candidate.reason, failure),
                ledger=self._ledger,
                noted=self._history.note,
            )
            try:
                answer = await attempt.run()
            except BaseException as error:
                lane.leave(error)
                # What one back end finds wrong with the request, the next one would find too.
                if isinstance(error, BackendRejected) or not isinstance(error, MoyinError):
                    raise
                failure = error
            else:
                if answer.stream is None:
                    lane.leave()
                return answer
        raise presentable(failure) if failure else decision.error(call.needs())


def _route(reason: str, failure: MoyinError | None) -> str:
    return reason if failure is None else f"fallback after {failure.code}"
