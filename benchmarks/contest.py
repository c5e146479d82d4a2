"""Measures Moyin and its peers in turns, with the same mock back end on the same machine."""

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

MOYIN, MOYIN_TWO = "Moyin", "Moyin, 2 replicas"
CONNECTIONS = (1, 16, 64, 256)
_ROUNDS = 3
_SECONDS = 3
_STREAMS = (25, 50, 100, 200, 400, 800)
_REQUESTS = 100_000
_MOYIN_SECONDS, _PEER_SECONDS = 150, 25


@dataclass(frozen=True, kw_only=True)
class Result:
    """Holds the results of one gateway.

    Attributes:
        load: medians of all rounds by number of connections.
        rounds: requests per second of each round, by number of connections.
        over_direct: ratio to the requests per second of the direct path in the same rounds.
        added: latency in addition to the direct path's: p50 and p99 in ms.
        first: time to the first token; ``added_first`` is the part that the gateway adds.
        streams: results for increasing numbers of streams, up to the first failure.
        busy: median load average of the machine, which shows other activity.
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
        """The largest number of streams that the gateway forwarded without noticeable delay."""
        return max((held.streams for held in self.streams if held.ok), default=0)

    def times(self, other: Result, connections: int) -> float:
        """Return the ratio to the requests per second of ``other`` in the same rounds."""
        return _ratio(self.rounds[connections], other.rounds[connections])


def contest(farm: Farm, others: Peers) -> list[Result]:
    """Measure all gateways with one replica of Moyin's models app, then Moyin with two replicas.

    Gateways that are compared take turns in every round, together with the direct path.
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
        measurement = measure(
            gateway.url,
            body=BODY,
            headers=gateway.headers,
            connections=connections,
            seconds=_SECONDS,
        )
        loads[gateway.name][connections].append(measurement)
        busy[gateway.name].append(os.getloadavg()[0])
    rates = {
        name: {c: tuple(m.requests_per_second for m in rounds) for c, rounds in load.items()}
        for name, load in loads.items()
    }
    medians = {
        name: {c: median(rounds) for c, rounds in load.items()} for name, load in loads.items()
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
            streams=tuple(_increasing_streams(gateway)),
            growth=_growth(gateway) if memory and gateway.name != base else None,
            busy=statistics.median(busy[gateway.name]),
        )
        for gateway in gateways
    ]


def _added(gateway: Measurement, direct: Measurement) -> tuple[float, float]:
    return gateway.p50_ms - direct.p50_ms, gateway.p99_ms - direct.p99_ms


def _turns(gateways: Sequence[Gateway]) -> Iterator[tuple[int, Gateway]]:
    for _ in range(_ROUNDS):
        for connections in CONNECTIONS:
            for gateway in gateways:
                yield connections, gateway


def _no_rounds() -> dict[int, list[Measurement]]:
    return {connections: [] for connections in CONNECTIONS}


def _ratio(rates: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the rounds' ratios, in which noise longer than a round cancels out."""
    return statistics.median(rate / other for rate, other in zip(rates, others, strict=True))


def _increasing_streams(gateway: Gateway) -> Iterator[Held]:
    for streams in _STREAMS:
        result = held(gateway, streams)
        yield result
        if not result.ok:
            return


def _growth(gateway: Gateway) -> Growth:
    seconds = _MOYIN_SECONDS if gateway.name == MOYIN else _PEER_SECONDS
    return growth(gateway, _REQUESTS, seconds)
