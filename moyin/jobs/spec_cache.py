"""Defines `SpecCache`, a cache for the specs of jobs that clients poll."""

from __future__ import annotations

from collections import OrderedDict


class SpecCache:
    """Keeps the most recently used encoded specs of jobs, up to ``max_bytes`` bytes in total.

    The keys are the SHA-256 of the specs. Ids of jobs would be unsafe keys: if another process
    deletes a job, another tenant may submit a new job with the same id.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._specs: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    def get(self, sha256: str) -> bytes | None:
        spec = self._specs.get(sha256)
        if spec is not None:
            self._specs.move_to_end(sha256)
        return spec

    def put(self, sha256: str, spec: bytes) -> None:
        self._size += len(spec) - len(self._specs.pop(sha256, b""))
        self._specs[sha256] = spec
        while self._size > self._max_bytes:
            self._size -= len(self._specs.popitem(last=False)[1])
