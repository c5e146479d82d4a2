"""Moyin and its peers take turns on the same mock and machine."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.farm import Farm, scale
from benchmarks.gateways import Gateway, direct, moyin, peers_of
from benchmarks.load import Measurement, measure
from benchmarks.memory import Growth, growth
from benchmarks.streams import FirstTokens, Held, first_tokens, held
from benchmarks.text import BODY, Peers, median

__all__ = ["CONNECTIONS", "MOYIN", "MOYIN_TWO", "Result", "contest"]

MOYIN, MOYIN_TWO = "Moyin", "Moyin, 2 replicas"
CONNECTIONS = (1, 16, 64, 256)
_ROUNDS = 3
_SECONDS = 3
_STREAMS = (25, 50, 100, 200, 400, 800)
_REQUESTS = 100_000
_MOYIN_SECONDS, _PEER_SECONDS = 150, 25


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one gateway did.

    Attributes:
        load: by number of connections, the medians of all rounds.
        rounds: requests a second in each.
        over_direct: its requests a second over those of the direct path, of the same rounds.
        added: what it adds to the direct path's latency in the same rounds: p50 and p99 in ms.
        first: until the first token, and ``added_first`` of that.
        streams: what was held, in rising numbers, up to the first that was not.
        busy: the machine's load average while it was measured: who else worked there.
    """

    name: str
    load: dict[int, Measurement]
    rounds: dict[int, tuple[float, ...]]
    over_direct: dict[int, float]
    added: dict[int, tuple[float, float]]
    first: FirstTokens
    added_first: FirstTokens
    streams: tuple[Held, ...]
    growth: Growth | None
    busy: float

    @property
    def held(self) -> int:
        """Most streams of fifty tokens a second that went through unnoticed."""
        return max((held.streams for held in self.streams if held.ok), default=0)

    def times(self, other: Result, connections: int) -> float:
        """How many times the requests a second of ``other``, which took turns with it."""
        return _ratio(self.rounds[connections], other.rounds[connections])


def contest(farm: Farm, others: Peers) -> list[Result]:
    """Two rounds of turns: with one replica of Moyin's models app, then with two.

    What is compared was measured in turns, against the direct path in the same round.
    """
    straight = direct(others.mock, others.mock_pid)
    with peers_of(others.mock) as peers:
        first = _compare([straight, moyin(farm, MOYIN), *peers], memory=True)
        scale(farm, 2)
        second = _compare([straight, moyin(farm, MOYIN_TWO)], memory=False)
    return [*first[:2], second[1], *first[2:]]


def _compare(gateways: Sequence[Gateway], *, memory: bool) -> list[Result]:
    busy: dict[str, list[float]] = {gateway.name: [] for gateway in gateways}
    loads = {gateway.name: _no_rounds() for gateway in gateways}
    for connections, gateway in _turns(gateways):
        found = measure(
            gateway.url,
            body=BODY,
            headers=gateway.headers,
            connections=connections,
            seconds=_SECONDS,
        )
        loads[gateway.name][connections].append(found)
        busy[gateway.name].append(os.getloadavg()[0])
    rates = {
        name: {c: tuple(one.requests_per_second for one in found) for c, found in load.items()}
        for name, load in loads.items()
    }
    medians = {
        name: {c: median(found) for c, found in load.items()} for name, load in loads.items()
    }
    firsts = {gateway.name: first_tokens(gateway) for gateway in gateways}
    base = gateways[0].name
    return [
        Result(
            name=gateway.name,
            load=medians[gateway.name],
            rounds=rates[gateway.name],
            over_direct={c: _ratio(rates[gateway.name][c], rates[base][c]) for c in CONNECTIONS},
            added={c: _added(medians[gateway.name][c], medians[base][c]) for c in CONNECTIONS},
            first=firsts[gateway.name],
            added_first=firsts[gateway.name].over(firsts[base]),
            streams=tuple(_rising(gateway)),
            growth=_growth(gateway) if memory and gateway.name != base else None,
            busy=statistics.median(busy[gateway.name]),
        )
        for gateway in gateways
    ]


def _added(found: Measurement, straight: Measurement) -> tuple[float, float]:
    return found.p50_ms - straight.p50_ms, found.p99_ms - straight.p99_ms


def _turns(gateways: Sequence[Gateway]) -> Iterator[tuple[int, Gateway]]:
    for _ in range(_ROUNDS):
        for connections in CONNECTIONS:
            for gateway in gateways:
                yield connections, gateway


def _no_rounds() -> dict[int, list[Measurement]]:
    return {connections: [] for connections in CONNECTIONS}


def _ratio(rates: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' ratios: noise that lasts longer than a round cancels out."""
    return statistics.median(rate / other for rate, other in zip(rates, others, strict=True))


def _rising(gateway: Gateway) -> Iterator[Held]:
    for streams in _STREAMS:
        found = held(gateway, streams)
        yield found
        if not found.ok:
            return


def _growth(gateway: Gateway) -> Growth:
    seconds = _MOYIN_SECONDS if gateway.name == MOYIN else _PEER_SECONDS
    return growth(gateway, _REQUESTS, seconds)
