from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.domain.artifact import Artifact, detect_media_type, sanitize_file_name
from moyin.errors import InvalidRequest
from moyin.http.headers import build_file_headers


@pytest.mark.parametrize(
    ("declared_type", "first_bytes", "expected_type"),
    [
        (None, b"\x89PNG\r\n\x1a\n", "image/png"),
        ("application/octet-stream", b"\xff\xd8\xff\xe0", "image/jpeg"),
        (None, b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (None, b"<html>", "application/octet-stream"),
        ("Image/PNG; charset=x", b"", "image/png"),
        ("text/html", b"\x89PNG\r\n\x1a\n", "text/html"),
    ],
)
def test_media_type_is_declared_or_detected(
    declared_type: str | None, first_bytes: bytes, expected_type: str
) -> None:
    assert detect_media_type(declared_type, first_bytes) == expected_type


@pytest.mark.parametrize(
    "declared_type", ["", "x", "a/b/c", "a b/c", "text/\nhtml", "x" * 100 + "/y"]
)
def test_invalid_media_type_is_refused(declared_type: str) -> None:
    if declared_type:
        with pytest.raises(InvalidRequest):
            detect_media_type(declared_type, b"")
    else:
        assert detect_media_type(declared_type, b"") == "application/octet-stream"


@pytest.mark.parametrize(
    ("name", "clean_name"),
    [
        ("a.png", "a.png"), ("../../etc/passwd", "passwd"), ("C:\\x\\y.png", "y.png"),
        ("a\r\nb.png", "ab.png"), ("", "upload.png"), (None, "upload.png"), ("..", "upload.png"),
        ("猫.png", "猫.png"), (" .hidden ", "hidden"), ("x" * 300 + ".png", "x" * 196 + ".png"),
    ],
)  # fmt: skip
def test_file_names_are_cleaned(name: str | None, clean_name: str) -> None:
    assert sanitize_file_name(name, "image/png") == clean_name


@given(st.text())
def test_sanitized_name_has_no_path_and_fits_a_header(name: str) -> None:
    clean_name = sanitize_file_name(name, "image/png")
    assert 0 < len(clean_name) <= 200
    assert "/" not in clean_name
    assert clean_name not in (".", "..")
    artifact = Artifact(id="a", name=clean_name, media_type="image/png", size=1, sha256="0")
    build_file_headers(artifact)["content-disposition"].encode("ascii")
