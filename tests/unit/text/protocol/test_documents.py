from __future__ import annotations

import base64
from typing import Any

import pytest
from pydantic_core import to_json

from moyin.domain.chat import ChatRequest, Document, Image, Message, Role, Text, ToolResult
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.text.protocol.anthropic.request_to_upstream import (
    chat_request_to_upstream as to_anthropic,
)
from moyin.text.protocol.documents import PromptFile, read_encoded_file, read_file
from moyin.text.protocol.ollama.request_to_upstream import chat_request_to_upstream as to_ollama
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.protocol.openai.request_to_upstream import chat_request_to_upstream as to_openai
from moyin.text.protocol.responses.codec import ResponsesCodec
from tests.acceptance.text_gateway import PNG

PDF = b"%PDF-1.7 and more"
ENCODED = base64.b64encode(PDF).decode()


def make_request(*parts: PromptFile) -> ChatRequest:
    tool_result = ToolResult(tool_use_id="1", content=parts)
    return ChatRequest(model="m", messages=(Message(role=Role.USER, parts=(*parts, tool_result)),))


@pytest.mark.parametrize(
    ("content", "name", "declared_type", "file_class"),
    [
        (PDF, "a.pdf", None, Document),
        (PDF, None, "text/plain", Document),
        (PNG, "a.pdf", "application/pdf", Image),
        (b"hello", "a.txt", None, Text),
        (b"{}", "a.json", "application/json", Text),
        (b"x = 1", "a.unknown", "application/octet-stream", Text),
        ("\N{BOM}Größe".encode(), "a.md", None, Text),
    ],
)
def test_the_content_decides_the_type_of_a_file(
    content: bytes, name: str | None, declared_type: str | None, file_class: type[PromptFile]
) -> None:
    encoded_content = base64.b64encode(content).decode()
    url = (
        encoded_content
        if declared_type is None
        else f"data:{declared_type};base64,{encoded_content}"
    )
    prompt_file = read_file(content, name=name, declared_type=declared_type, field="f")
    assert type(prompt_file) is file_class
    assert read_encoded_file(url, name=name, field="f") == prompt_file


def test_text_has_the_name_of_its_file() -> None:
    text = read_file(b"hello", name='a "b".txt', declared_type=None, field="f")
    assert text == Text(text="<file name=\"a 'b'.txt\">\nhello\n</file>")
    assert read_file(b"hello", name=None, declared_type="text/plain", field="f") == Text(
        text="hello"
    )


@pytest.mark.parametrize("content", [b"PK\x03\x04\xff", b"RIFF\xff\xff\xff\xffWAVE"])
def test_file_types_that_no_model_reads_are_refused(content: bytes) -> None:
    with pytest.raises(UnsupportedFeature, match=r"f: models read .* not") as exc_info:
        read_file(content, name="a.bin", declared_type=None, field="f")
    assert exc_info.value.field == "f"
    with pytest.raises(InvalidRequest, match="f must be base64"):
        read_encoded_file("data:application/zip;base64,%%%", name=None, field="f")


def test_each_format_has_its_own_place_for_documents() -> None:
    document = Document(media_type="application/pdf", data=ENCODED, name="a.pdf")
    source = {"type": "base64", "media_type": "application/pdf", "data": ENCODED}
    block = {"type": "document", "source": source, "title": "a.pdf"}
    [message] = to_anthropic(make_request(document))["messages"]
    assert message["content"][0] == block
    assert message["content"][1]["content"] == [block]
    url = f"data:application/pdf;base64,{ENCODED}"
    file_part = {"type": "file", "file": {"filename": "a.pdf", "file_data": url}}
    messages = to_openai(make_request(document), stream=False)["messages"]
    assert messages[1] == {"role": "user", "content": [file_part, file_part]}, (
        "a tool's message is text"
    )
    with pytest.raises(UnsupportedFeature, match="Ollama does not support application/pdf"):
        to_ollama(make_request(document), context=100, stream=False)
    with pytest.raises(UnsupportedFeature, match="Ollama does not support application/pdf"):
        tool_result = ToolResult(tool_use_id="1", content=(document,))
        request_with_result = ChatRequest(
            model="m", messages=(Message(role=Role.USER, parts=(tool_result,)),)
        )
        to_ollama(request_with_result, context=100, stream=False)


def test_chat_file_with_content_is_translated_and_file_id_is_refused() -> None:
    def parse_file(file: dict[str, Any]) -> Any:
        content = [{"type": "file", "file": file}]
        body = {"model": "m", "messages": [{"role": "user", "content": content}]}
        return OpenAICodec().parse(to_json(body))

    parsed_request = parse_file(
        {"file_data": f"data:application/pdf;base64,{ENCODED}", "filename": "a.pdf"}
    )
    [message] = parsed_request.to_domain("m").messages
    assert message.parts == (Document(media_type="application/pdf", data=ENCODED, name="a.pdf"),)
    assert not parsed_request.derive_needs().has_external_content
    assert parsed_request.derive_needs().attachment_bytes > len(PDF)
    for file in ({"file_id": "file-of-theirs"}, {"file_data": "https://x.y/a.pdf"}, {}):
        parsed_request = parse_file(file)
        assert parsed_request.derive_needs().has_external_content
        with pytest.raises(UnsupportedFeature) as exc_info:
            parsed_request.to_domain("m")
        assert exc_info.value.field == "messages.0.content.0"


@pytest.mark.parametrize(
    ("file_part", "error_class", "field"),
    [
        ({"type": "input_file", "file_id": "file-x"}, InvalidRequest, "file_id"),
        ({"type": "input_file", "file_url": "https://x.y"}, UnsupportedFeature, "file_url"),
        ({"type": "input_file"}, InvalidRequest, None),
        ({"type": "input_image"}, InvalidRequest, None),
        ({"type": "input_file", "file_data": "%%"}, InvalidRequest, "file_data"),
    ],
)
def test_request_without_its_file_is_refused(
    file_part: dict[str, Any], error_class: type[Exception], field: str | None
) -> None:
    body = {"model": "m", "input": [{"role": "user", "content": [file_part]}]}
    with pytest.raises(error_class) as exc_info:
        ResponsesCodec().parse(to_json(body))
    path = "input.0.content.0" if field is None else f"input.0.content.0.{field}"
    assert getattr(exc_info.value, "field", None) == path


def test_a_documents_bytes_count_for_the_budget() -> None:
    file_part = {"type": "input_file", "filename": "a.pdf", "file_data": ENCODED * 100}
    body = {"model": "m", "input": [{"role": "user", "content": [file_part]}]}
    needs = ResponsesCodec().parse(to_json(body)).derive_needs()
    assert needs.attachment_bytes == len(ENCODED) * 100
