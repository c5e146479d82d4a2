"""Compares Moyin and other gateways in turns, all in front of the same mock model server.

`run_contest` measures all gateways at all numbers of connections. `run_duel` measures only Moyin and the
fastest other gateway, at the numbers of streams that decide the comparison.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from benchmarks.farm import Farm, scale_models_app
from benchmarks.gateways import (
    Gateway,
    new_mock_gateway,
    new_moyin_gateway,
    running_peer_gateways,
    running_tensorzero,
)
from benchmarks.load import Measurement, measure_load
from benchmarks.memory import MemoryGrowth, measure_growth
from benchmarks.processes import sum_processor_seconds
from benchmarks.streams import FirstTokens, HeldStreams, measure_first_tokens, measure_held_streams
from benchmarks.text import BODY, PeerServers, combine_measurements

MOYIN, MOYIN_TWO = "Moyin", "Moyin, 2 replicas"
CONNECTIONS = (1, 16, 64, 256)
_ROUNDS = 3
_SECONDS = 3
_DUEL_CONNECTIONS = (1, 16)
_STREAMS = (25, 50, 100, 200, 400, 800, 1_000)
_DUEL_STREAMS = (400, 800, 1_000)
_REQUESTS = 100_000
_MOYIN_SECONDS, _PEER_SECONDS = 150, 25


@dataclass(frozen=True, kw_only=True)
class Result:
    """The results of one gateway.

    Attributes:
        load: the results of wrk by number of connections; each value is the median of all rounds.
        rounds: requests per second of each round, by number of connections.
        processor: processor time per request in microseconds, by number of connections.
        over_direct: requests per second divided by those without a gateway in the same rounds.
        added: latency that the gateway adds: p50 and p99 in ms.
        first: time to the first token.
        added_first: the part of ``first`` that the gateway adds.
        streams: results for increasing numbers of streams. The list ends with the first failure,
            except in `run_duel`.
        busy: median load average of the machine, which reveals other activity.
    """

    name: str
    load: dict[int, Measurement]
    rounds: dict[int, tuple[float, ...]]
    processor: dict[int, float]
    over_direct: dict[int, float]
    added: dict[int, tuple[float, float]]
    first: FirstTokens
    added_first: FirstTokens
    streams: tuple[HeldStreams, ...]
    growth: MemoryGrowth | None
    busy: float

    @property
    def held_stream_count(self) -> int:
        """The largest number of streams that the gateway forwarded without noticeable delay."""
        return max(
            (level.streams for level in takewhile(lambda held: held.is_undelayed, self.streams)),
            default=0,
        )

    def ratio_to(self, other_result: Result, connections: int) -> float:
        """Return this gateway's requests per second divided by those of another gateway.

        The result is the median of the quotients of all rounds.

        Args:
            connections: the number of concurrent connections to compare.
        """
        return _compute_median_ratio(self.rounds[connections], other_result.rounds[connections])


def run_contest(farm: Farm, peer_servers: PeerServers) -> list[Result]:
    """Measure all gateways with one replica of Moyin's models app, then Moyin with two replicas.

    Gateways that are compared take turns in every round, together with direct calls of the mock.
    """
    direct_calls = new_mock_gateway(peer_servers.mock, peer_servers.mock_pid)
    with running_peer_gateways(peer_servers.mock) as peers:
        main_results = _compare([direct_calls, new_moyin_gateway(farm, MOYIN), *peers], memory=True)
        scale_models_app(farm, 2)
        two_replica_results = _compare([direct_calls, new_moyin_gateway(farm, MOYIN_TWO)])
    return [*main_results[:2], two_replica_results[1], *main_results[2:]]


def run_duel(farm: Farm, peer_servers: PeerServers) -> list[Result]:
    """Measure one replica of Moyin's models app and TensorZero, the fastest other gateway.

    They take turns in every round, together with direct calls of the mock.
    """
    direct_calls = new_mock_gateway(peer_servers.mock, peer_servers.mock_pid)
    with running_tensorzero(peer_servers.mock) as peer_gateway:
        gateways = [direct_calls, new_moyin_gateway(farm, MOYIN), peer_gateway]
        return _compare(
            gateways, connections=_DUEL_CONNECTIONS, streams=_DUEL_STREAMS, all_streams=True
        )


def _compare(
    gateways: Sequence[Gateway],
    *,
    connections: Sequence[int] = CONNECTIONS,
    streams: Sequence[int] = _STREAMS,
    all_streams: bool = False,
    memory: bool = False,
) -> list[Result]:
    """Measure ``gateways`` in turns; the first must be the mock itself, without a gateway.

    Args:
        all_streams: True to measure larger numbers of streams even after a gateway has failed.
        memory: True to measure also the growth of memory.
    """
    load_averages: dict[str, list[float]] = {gateway.name: [] for gateway in gateways}
    loads: dict[str, dict[int, list[Measurement]]] = {gateway.name: {} for gateway in gateways}
    processor_us: dict[str, dict[int, list[float]]] = {gateway.name: {} for gateway in gateways}
    for count, gateway in _iterate_measurements(gateways, connections):
        cpu_before = sum_processor_seconds(gateway.processes())
        measurement = measure_load(
            gateway.url,
            body=gateway.adapt_body(BODY),
            headers=gateway.headers,
            connections=count,
            seconds=_SECONDS,
        )
        cpu_seconds = sum_processor_seconds(gateway.processes()) - cpu_before
        loads[gateway.name].setdefault(count, []).append(measurement)
        microseconds = cpu_seconds / max(measurement.requests, 1) * 1e6
        processor_us[gateway.name].setdefault(count, []).append(microseconds)
        load_averages[gateway.name].append(os.getloadavg()[0])
    rates_by_name = {
        name: {c: tuple(m.requests_per_second for m in rounds) for c, rounds in load.items()}
        for name, load in loads.items()
    }
    medians_by_name = {
        name: {c: combine_measurements(rounds) for c, rounds in load.items()}
        for name, load in loads.items()
    }
    first_tokens_by_name = {gateway.name: measure_first_tokens(gateway) for gateway in gateways}
    direct_name = gateways[0].name
    return [
        Result(
            name=gateway.name,
            load=medians_by_name[gateway.name],
            rounds=rates_by_name[gateway.name],
            processor={c: statistics.median(us) for c, us in processor_us[gateway.name].items()},
            over_direct={
                c: _compute_median_ratio(
                    rates_by_name[gateway.name][c], rates_by_name[direct_name][c]
                )
                for c in connections
            },
            added={
                c: _compute_added_latency(
                    medians_by_name[gateway.name][c], medians_by_name[direct_name][c]
                )
                for c in connections
            },
            first=first_tokens_by_name[gateway.name],
            added_first=first_tokens_by_name[gateway.name].minus(first_tokens_by_name[direct_name]),
            streams=tuple(_measure_increasing_streams(gateway, streams, all_streams)),
            growth=_measure_growth(gateway) if memory and gateway.name != direct_name else None,
            busy=statistics.median(load_averages[gateway.name]),
        )
        for gateway in gateways
    ]


def _compute_added_latency(
    gateway: Measurement, direct_measurement: Measurement
) -> tuple[float, float]:
    return gateway.p50_ms - direct_measurement.p50_ms, gateway.p99_ms - direct_measurement.p99_ms


def _iterate_measurements(
    gateways: Sequence[Gateway], connections: Sequence[int]
) -> Iterator[tuple[int, Gateway]]:
    for _ in range(_ROUNDS):
        for count in connections:
            for gateway in gateways:
                yield count, gateway


def _compute_median_ratio(rates: Sequence[float], other_rates: Sequence[float]) -> float:
    """Divide the two rates of each round, and return the median of the quotients.

    Noise that lasts longer than a round affects both rates, so it cancels out.
    """
    return statistics.median(
        rate / other_rate for rate, other_rate in zip(rates, other_rates, strict=True)
    )


def _measure_increasing_streams(
    gateway: Gateway, stream_counts: Sequence[int], measures_all: bool
) -> Iterator[HeldStreams]:
    for stream_count in stream_counts:
        held_streams = measure_held_streams(gateway, stream_count)
        yield held_streams
        if not held_streams.is_undelayed and not measures_all:
            return


def _measure_growth(gateway: Gateway) -> MemoryGrowth:
    seconds = _MOYIN_SECONDS if gateway.name == MOYIN else _PEER_SECONDS
    return measure_growth(gateway, _REQUESTS, seconds)
