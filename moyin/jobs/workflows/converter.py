"""Workflow payloads to JSON and back, by pydantic."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    BinaryNullPayloadConverter,
    CompositePayloadConverter,
    DataConverter,
    EncodingPayloadConverter,
)

__all__ = ["DATA_CONVERTER"]

_ENCODING = "json/plain"
# Temporal's own pydantic converter has a cache for each workflow, in which making an adapter is the
# greater part of reading a payload; there are as many adapters as there are types in `types`.
_adapters: dict[Any, TypeAdapter[Any]] = {}


class _Json(EncodingPayloadConverter):
    """The same bytes as ``temporalio.contrib.pydantic``."""

    @property
    def encoding(self) -> str:
        return _ENCODING

    def to_payload(self, value: Any) -> Payload | None:
        return Payload(metadata={"encoding": _ENCODING.encode()}, data=to_json(value))

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> Any:
        hint: Any = Any if type_hint is None else type_hint
        adapter = _adapters.get(hint)
        if adapter is None:
            adapter = _adapters[hint] = TypeAdapter(hint)
        return adapter.validate_json(payload.data)


class _Payloads(CompositePayloadConverter):
    def __init__(self) -> None:
        super().__init__(BinaryNullPayloadConverter(), _Json())


DATA_CONVERTER = DataConverter(payload_converter_class=_Payloads)
