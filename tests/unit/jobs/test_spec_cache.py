"""Tests the bounds of the cache of specs."""

from __future__ import annotations

from moyin.jobs.spec_cache import SpecCache


def test_the_least_recently_read_specs_are_dropped() -> None:
    cache = SpecCache(10)
    cache.put("a", b"1234")
    cache.put("b", b"1234")
    assert cache.get("a") == b"1234"
    cache.put("c", b"1234")
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (b"1234", None, b"1234")
    cache.put("d", b"12345678901")
    assert [cache.get(name) for name in "abcd"] == [None] * 4, "it is larger than the cache"


def test_replaced_specs_free_their_bytes() -> None:
    cache = SpecCache(10)
    for _ in range(3):
        cache.put("a", b"12345")
    cache.put("b", b"12345")
    assert (cache.get("a"), cache.get("b")) == (b"12345", b"12345")
