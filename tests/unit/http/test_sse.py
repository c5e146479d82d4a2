from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.errors import StreamInterrupted
from moyin.http import sse
from moyin.http.sse import FrameSplitter, encode_event

STREAM = (
    b": ping\n\n"
    + encode_event({"a": 1})
    + encode_event({"b": "zwei\n"}, name="x")
    + b"data: [DONE]\n\n"
)


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12), st.booleans())
def test_frames_do_not_depend_on_chunking(cut_offsets: list[int], has_crlf: bool) -> None:
    stream = STREAM.replace(b"\n", b"\r\n") if has_crlf else STREAM
    edges = [0, *sorted(cut_offsets), len(stream)]
    splitter = FrameSplitter()
    frames = [frame for start, end in pairwise(edges) for frame in splitter.feed(stream[start:end])]
    assert b"".join(frame.raw for frame in frames) == STREAM
    assert [frame.data for frame in frames] == [None, b'{"a":1}', b'{"b":"zwei\\n"}', b"[DONE]"]


def test_endless_frame_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_MAX_FRAME_BYTES", 100)
    splitter = FrameSplitter()
    with pytest.raises(StreamInterrupted):
        for _ in range(20):
            splitter.feed(b"data: xxxxxxx")
