"""Tests forwarded forms: their fields, files and length."""

from __future__ import annotations

import io
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from moyin.http.multipart import EncodedForm, FormFile, MultipartForm


class MemoryFile:
    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    async def read(self, size: int) -> bytes:
        return self._file.read(size)

    async def seek(self, offset: int) -> None:
        self._file.seek(offset)


def form(content: bytes, *fields: tuple[str, str], name: str = "a.wav") -> MultipartForm:
    file = FormFile(
        field="file", name=name, content_type="", size=len(content), content=MemoryFile(content)
    )
    return MultipartForm(fields=fields, files=[file])


async def test_a_form_is_encoded_again_and_again() -> None:
    content = bytes(range(256)) * 3000  # in several pieces
    fields = [("model", "alias"), ("include[]", "a"), ("include[]", "b"), ("model", "twice")]
    encoded_form = EncodedForm(form(content, *fields), {"model": "whisper-1"})
    for _ in range(2):
        pieces = [piece async for piece in encoded_form.iterate_body()]
        assert max(map(len, pieces)) <= 256 * 1024
        body = b"".join(pieces)
        assert len(body) == encoded_form.length
        head = f"content-type: {encoded_form.content_type}\r\n\r\n".encode()
        parts: Any = BytesParser(policy=HTTP).parsebytes(head + body).get_payload()
        results = [
            (
                part.get_param("name", header="content-disposition"),
                part.get_filename(),
                part.get_payload(decode=True),
            )
            for part in parts
        ]
        assert results == [
            ("model", None, b"whisper-1"),
            ("include[]", None, b"a"),
            ("include[]", None, b"b"),
            ("file", "a.wav", content),
        ]


async def test_names_cannot_add_headers() -> None:
    encoded_form = EncodedForm(form(b"x", name='a"\r\nx-evil: 1\r\n\r\n.wav'), {})
    body = b"".join([piece async for piece in encoded_form.iterate_body()])
    assert b'filename="a%22%0D%0Ax-evil: 1%0D%0A%0D%0A.wav"' in body


def test_the_last_value_of_a_field_counts() -> None:
    received_form = form(b"x", ("n", "1"), ("n", "2"))
    assert received_form.get("n") == "2" and received_form.get("m") is None
