"""Tests the latency estimates of a model on one back end."""

from __future__ import annotations

from moyin.domain.money import TokenSpeed
from moyin.text.routing.latency import LatencyEstimator, LatencyPrior

SLOW = LatencyPrior(first_token=10.0, speed=TokenSpeed(prompt=100.0, output=1.0))


def record_calls(estimator: LatencyEstimator, first_token_seconds: float) -> None:
    for _ in range(100):
        estimator.record(
            prompt_tokens=50,
            output_tokens=10,
            first_token_seconds=first_token_seconds,
            seconds=2 * first_token_seconds,
            concurrency=1,
        )


def test_unmeasured_host_is_expected_to_be_faster_than_its_peers() -> None:
    peers: list[LatencyEstimator] = []
    first_estimator, second_estimator, third_estimator = (
        LatencyEstimator(SLOW, lambda: 0.0, lambda: peers) for _ in range(3)
    )
    peers.extend((first_estimator, second_estimator, third_estimator))
    assert third_estimator.estimate_first_token_seconds(50) == 10.5, "no host was measured"
    record_calls(first_estimator, 0.5)
    record_calls(second_estimator, 2.0)
    fastest_seconds = first_estimator.estimate_first_token_seconds(50)
    assert (
        0.5 * fastest_seconds < third_estimator.estimate_first_token_seconds(50) < fastest_seconds
    )
    assert (
        third_estimator.estimate_seconds_per_token() < first_estimator.estimate_seconds_per_token()
    )
    record_calls(third_estimator, 20.0)
    assert third_estimator.estimate_first_token_seconds(50) > 10, "its own measurements count"
