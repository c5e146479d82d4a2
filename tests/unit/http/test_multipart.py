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


def make_form(content: bytes, *fields: tuple[str, str], name: str = "a.wav") -> MultipartForm:
    file = FormFile(
        field="file", name=name, content_type="", size=len(content), content=MemoryFile(content)
    )
    return MultipartForm(fields=fields, files=[file])


async def test_form_can_be_encoded_repeatedly() -> None:
    content = bytes(range(256)) * 3000  # in several pieces
    fields = [("model", "alias"), ("include[]", "a"), ("include[]", "b"), ("model", "twice")]
    encoded_form = EncodedForm(make_form(content, *fields), {"model": "whisper-1"})
    for _ in range(2):
        pieces = [piece async for piece in encoded_form.iterate_body()]
        assert max(map(len, pieces)) <= 256 * 1024
        body = b"".join(pieces)
        assert len(body) == encoded_form.length
        header = f"content-type: {encoded_form.content_type}\r\n\r\n".encode()
        parts: Any = BytesParser(policy=HTTP).parsebytes(header + body).get_payload()
        decoded_parts = [
            (
                part.get_param("name", header="content-disposition"),
                part.get_filename(),
                part.get_payload(decode=True),
            )
            for part in parts
        ]
        assert decoded_parts == [
            ("model", None, b"whisper-1"),
            ("include[]", None, b"a"),
            ("include[]", None, b"b"),
            ("file", "a.wav", content),
        ]


async def test_file_name_cannot_add_headers() -> None:
    encoded_form = EncodedForm(make_form(b"x", name='a"\r\nx-evil: 1\r\n\r\n.wav'), {})
    body = b"".join([piece async for piece in encoded_form.iterate_body()])
    assert b'filename="a%22%0D%0Ax-evil: 1%0D%0A%0D%0A.wav"' in body


def test_last_value_of_a_repeated_field_wins() -> None:
    received_form = make_form(b"x", ("n", "1"), ("n", "2"))
    assert received_form.get("n") == "2" and received_form.get("m") is None
