"""Tests that an outage of Valkey loses previews, but raises no error."""

from __future__ import annotations

import pytest

from moyin.store.previews import Preview, PreviewStore


async def test_an_outage_of_valkey_loses_previews_and_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = PreviewStore("redis://127.0.0.1:1/0")
    await store.watch("j")
    await store.publish("j", Preview(step=0, node="", media_type="image/png"), b"png")
    assert await store.find("j") is None
    await store.close()
    assert len(caplog.records) == 3
