"""Defines `SpecCache`, which keeps the specs of jobs for whose status clients poll."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class SpecCache:
    """Keeps the encoded specs of the jobs that were read last, up to a number of bytes.

    A job's spec never changes. The entry of a job that another process deleted is not read any more,
    since the job is looked up first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._specs: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    def get(self, job_id: str) -> bytes | None:
        spec = self._specs.get(job_id)
        if spec is not None:
            self._specs.move_to_end(job_id)
        return spec

    def put(self, job_id: str, spec: bytes) -> None:
        self.discard([job_id])
        self._specs[job_id] = spec
        self._size += len(spec)
        while self._size > self._limit:
            self._size -= len(self._specs.popitem(last=False)[1])

    def discard(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            self._size -= len(self._specs.pop(job_id, b""))
