"""Defines `SpecCache`, which keeps the specs of jobs for whose status clients poll."""

from __future__ import annotations

from collections import OrderedDict


class SpecCache:
    """Keeps the encoded specs of the jobs that were read last, up to a number of bytes.

    Their keys are the SHA-256 of the specs. Ids of jobs would not do: another process may delete a
    job, and another tenant may submit a job with its id.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
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
        while self._size > self._limit:
            self._size -= len(self._specs.popitem(last=False)[1])
