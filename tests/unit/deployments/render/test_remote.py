"""Tests how a pool reads what actors of earlier versions report."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

from actors.comfyui import ActorStatus, ComfySpec
from deployments.render.remote import fill_missing_members
from moyin.domain.renderer import RendererStatus


def unpickle_without_last_members(value: Any, count: int) -> Any:
    """Return a copy of a dataclass as its class restores it without its last ``count`` members."""
    copy = object.__new__(type(value))
    names = [field.name for field in dataclasses.fields(value)][:-count]
    copy.__setstate__([getattr(value, name) for name in names])
    return copy


def test_status_of_an_earlier_version_gets_default_values() -> None:
    renderer = RendererStatus(ready=True, pid=7, models=("a.safetensors",))
    status = ActorStatus(
        renderer=unpickle_without_last_members(renderer, 3),
        spec=unpickle_without_last_members(ComfySpec(gpus=0.5), 5),
        node_id="node",
        devices=None,
        started=1.0,
    )
    status = unpickle_without_last_members(status, 1)
    assert not hasattr(status, "memory_kills") and not hasattr(status.renderer, "tenant")
    assert fill_missing_members(status)
    assert status.memory_kills == ()
    assert status.renderer == renderer
    # The supervisor of a pool compares specs to find actors of an earlier configuration.
    assert status.spec == ComfySpec(gpus=0.5)


def test_status_of_this_version_is_unchanged() -> None:
    status = ActorStatus(
        renderer=RendererStatus(ready=True, tenant="t", tenant_changes=2),
        spec=ComfySpec(processes=9),
        node_id="node",
        devices="0",
        started=1.0,
    )
    received_status = pickle.loads(pickle.dumps(status))
    assert not fill_missing_members(received_status)
    assert received_status == status
