from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.domain.artifact import Artifact
from moyin.http.headers import build_file_headers, parse_byte_range, prefers_async_response


@given(st.text(alphabet="bytes=-0123456789 ,x"), st.integers(0, 1000))
def test_byte_range_lies_inside_the_content(header: str, size: int) -> None:
    byte_range = parse_byte_range(header, size)
    if byte_range is not None:
        assert 0 <= byte_range[0] <= byte_range[1] <= size


def test_only_safe_media_types_are_shown_inline() -> None:
    for media_type in (
        "text/html",
        "image/svg+xml",
        "application/pdf",
        "text/xml",
        "text/javascript",
    ):
        headers = build_file_headers(
            Artifact(id="a", name="x", media_type=media_type, size=1, sha256="0")
        )
        assert headers["content-type"] == "application/octet-stream"
        assert headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("a b_00001_ (2).png", 'filename="a b_00001_ (2).png"'),
        ("猫.png", "filename*=UTF-8''%E7%8C%AB.png"),
        ('a".png', "filename*=UTF-8''a%22.png"),
        ("a\\.png", "filename*=UTF-8''a%5C.png"),
        ("a\r\nx: y", "filename*=UTF-8''a%0D%0Ax%3A%20y"),
        ("a\n", "filename*=UTF-8''a%0A"),
        ("a%22;b", "filename*=UTF-8''a%2522%3Bb"),
    ],
)
def test_file_names_are_quoted_if_plain_and_encoded_otherwise(name: str, parameter: str) -> None:
    artifact = Artifact(id="a", name=name, media_type="image/png", size=1, sha256="0")
    assert build_file_headers(artifact)["content-disposition"] == f"inline; {parameter}"


@pytest.mark.parametrize(
    ("prefer_values", "is_preferred"),
    [
        ([b"respond-async"], True),
        ([b"wait=10, Respond-Async ; x=1"], True),
        ([b"wait=10", b"respond-async"], True),
        ([b"respond-asynchronously", b"x; respond-async"], False),
        ([], False),
    ],
)
def test_respond_async_is_found_among_the_preferences(
    prefer_values: list[bytes], is_preferred: bool
) -> None:
    headers = [(b"accept", b"respond-async"), *((b"prefer", value) for value in prefer_values)]
    assert prefers_async_response(headers) is is_preferred
