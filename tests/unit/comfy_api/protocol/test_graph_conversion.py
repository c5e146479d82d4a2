"""Tests which values of a graph are taken for names of the caller's uploads."""

from __future__ import annotations

import pytest

from moyin.comfy_api.protocol.graph_conversion import find_missing_parts

NODES = {"LoadImage": {"input": {"required": {"image": [[], {"image_upload": True}]}}}}


@pytest.mark.parametrize(
    ("value", "is_upload"),
    [
        ("a.png", True),
        ("a.png [input]", True),
        # A search for these would store a file of a job, which a key that only reads must not do.
        ("a.png [output]", False),
        ("a.png[output]", False),
        ("a.png[temp]", False),
    ],
)
def test_only_names_in_the_input_folder_are_uploads(value: str, is_upload: bool) -> None:
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": value}}}
    missing_parts, uploads = find_missing_parts(graph, NODES)
    assert [upload.value for upload in uploads] == ([value] if is_upload else [])
    assert not missing_parts.choices
