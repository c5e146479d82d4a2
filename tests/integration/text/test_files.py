"""Tests ``/v1/files`` with OpenAI's SDK in strict mode, and prompts that refer to files."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa

from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.schema import files
from moyin.store.sql import Database, now
from tests.acceptance.openai_models import check_response_async
from tests.acceptance.text_gateway import PNG
from tests.examples import read_example
from tests.integration.text.batch_providers import MockAnthropic, MockOpenAI
from tests.integration.text.fixtures import ModelsApp, serving

PDF = b"%PDF-1.7\nnot a real one"


class FilesApp:
    """A models app in front of Claude and an OpenAI-compatible server, both mocks."""

    def __init__(self, models_app: ModelsApp, database: Database) -> None:
        self.models_app = models_app
        self.database = database
        self.claude = MockAnthropic()
        self.gpt = MockOpenAI()
        self.client = self.open_client(models_app.api_key)

    def open_client(self, key: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.models_app.url}/v1",
            api_key=key,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=60, event_hooks={"response": [check_response_async]}
            ),
            _strict_response_validation=True,
        )


@pytest.fixture
async def files_app(tmp_path: Path) -> AsyncIterator[FilesApp]:
    claude_provider, openai_provider = MockAnthropic(), MockOpenAI()
    capabilities = {"context": 100_000, "vision": True, "price": 0}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(claude_provider.running())
        await stack.enter_async_context(openai_provider.running())
        models_app = await stack.enter_async_context(
            serving(
                tmp_path,
                {
                    "name": "claude", "type": "anthropic", "base_url": claude_provider.url,
                    "api_key_env": "LLAMA_KEY", "models": [{"name": "claude", **capabilities}],
                },
                {
                    "name": "gpt", "type": "openai", "base_url": f"{openai_provider.url}/v1",
                    "api_key_env": "LLAMA_KEY", "models": [{"name": "gpt", **capabilities}],
                },
            )
        )  # fmt: skip
        app = FilesApp(models_app, Database(Settings(data=tmp_path).sql_url))
        app.claude, app.gpt = claude_provider, openai_provider
        yield app
        await app.client.close()
        await app.database.close()


async def test_a_file_is_stored_listed_read_and_deleted(files_app: FilesApp) -> None:
    client = files_app.client
    content = b'{"custom_id": "1"}\n' * 200_000
    stored_file = await client.files.create(file=("lines.jsonl", content), purpose="batch")
    assert (stored_file.bytes, stored_file.filename, stored_file.purpose) == (
        len(content),
        "lines.jsonl",
        "batch",
    )
    assert stored_file.expires_at == stored_file.created_at + 30 * 86_400
    assert await client.files.retrieve(stored_file.id) == stored_file
    assert (await client.files.content(stored_file.id)).content == content
    deletion = await client.files.delete(stored_file.id)
    assert deletion.deleted and deletion.id == stored_file.id
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as exc_info:
            await call(stored_file.id)
        assert exc_info.value.code == "stored_file_not_found"
    assert [file async for file in client.files.list()] == []


async def test_lists_are_paged_filtered_and_ordered(files_app: FilesApp) -> None:
    client = files_app.client
    purposes: Any = ("user_data", "vision", "user_data")
    ids = [
        (await client.files.create(file=("a.txt", b"text"), purpose=purpose)).id
        for purpose in purposes
    ]
    page = await client.files.list(limit=2)
    assert [file.id for file in page.data] == [ids[2], ids[1]] and page.has_more
    assert [file.id async for file in client.files.list(limit=1)] == ids[::-1]
    assert [file.id async for file in client.files.list(limit=1, order="asc")] == ids
    listed_ids = [file.id async for file in client.files.list(purpose="user_data", limit=1)]
    assert listed_ids == [ids[2], ids[0]]


async def test_a_file_belongs_to_one_tenant(files_app: FilesApp) -> None:
    stored_file = await files_app.client.files.create(
        file=("a.txt", b"secret"), purpose="user_data"
    )
    _, key = await KeyStore(files_app.database).create("another", "k")
    async with files_app.open_client(key) as other_client:
        assert [file async for file in other_client.files.list()] == []
        for call in (
            other_client.files.retrieve,
            other_client.files.content,
            other_client.files.delete,
        ):
            with pytest.raises(openai.NotFoundError):
                await call(stored_file.id)
        content_part: Any = {"type": "input_file", "file_id": stored_file.id}
        with pytest.raises(openai.BadRequestError) as exc_info:
            await other_client.responses.create(
                model="claude", input=[{"role": "user", "content": [content_part]}]
            )
        assert exc_info.value.param == "input.0.content.0.file_id"
        with pytest.raises(openai.NotFoundError):
            await other_client.files.list(after=stored_file.id)
    assert not files_app.claude.calls


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({}, "purpose", "invalid_request"),
        ({"purpose": "fine-tune"}, "purpose", "unsupported_feature"),
        ({"purpose": "batch_output"}, "purpose", "invalid_request"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at"},
            "expires_after[seconds]",
            "invalid_request",
        ),
        (
            {"purpose": "batch", "expires_after[seconds]": "3600"},
            "expires_after[anchor]",
            "invalid_request",
        ),
    ],
)
async def test_a_wrong_field_is_named(
    files_app: FilesApp, fields: dict[str, str], field: str, code: str
) -> None:
    async with httpx.AsyncClient(
        timeout=60, headers={"authorization": f"Bearer {files_app.models_app.api_key}"}
    ) as http:
        url = f"{files_app.models_app.url}/v1/files"
        response = await http.post(url, data=fields, files={"file": ("a.txt", b"text")})
        assert response.status_code == 400
        assert (response.json()["error"]["param"], response.json()["error"]["code"]) == (
            field,
            code,
        )


async def test_a_file_that_is_empty_missing_or_too_large_is_refused(files_app: FilesApp) -> None:
    client = files_app.client
    with pytest.raises(openai.BadRequestError, match="empty") as exc_info:
        await client.files.create(file=("a.txt", b""), purpose="batch")
    assert exc_info.value.param == "file"
    # Its client would send for longer than the server listens.
    url = httpx.URL(files_app.models_app.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nhost: h\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        b"content-length: 40000001\r\nauthorization: Bearer "
        + files_app.models_app.api_key.encode()
        + b"\r\n\r\n"
    )
    assert b"413" in await reader.readline()
    assert b"body_too_large" in await reader.read()
    writer.close()
    assert [file async for file in client.files.list()] == []


async def test_an_expired_file_is_gone(files_app: FilesApp) -> None:
    client = files_app.client
    stored_file = await client.files.create(
        file=("a.txt", b"text"),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert stored_file.expires_at == stored_file.created_at + 3600
    expire_statement: sa.Update = files.update().values(expires_at=now())
    await files_app.database.execute(expire_statement)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(stored_file.id)


async def test_claude_gets_files_of_a_response_and_of_its_continuation(files_app: FilesApp) -> None:
    client = files_app.client
    pdf_file = await client.files.create(file=("report.pdf", PDF), purpose="user_data")
    picture_file = await client.files.create(file=("dot.png", PNG), purpose="vision")
    text_file = await client.files.create(
        file=("notes.md", "# Größe".encode()), purpose="assistants"
    )
    content: Any = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_file", "file_id": pdf_file.id},
        {"type": "input_image", "file_id": picture_file.id, "detail": "auto"},
        {"type": "input_file", "file_id": text_file.id},
        {"type": "input_file", "filename": "a.csv", "file_data": base64.b64encode(b"a,b").decode()},
    ]
    first_response = await client.responses.create(
        model="claude", input=[{"role": "user", "content": content}]
    )
    blocks = files_app.claude.calls[-1]["messages"][0]["content"]
    assert [block["type"] for block in blocks] == ["text", "document", "image", "text", "text"]
    assert base64.b64decode(blocks[1]["source"]["data"]) == PDF
    assert blocks[1]["title"] == "report.pdf"
    assert base64.b64decode(blocks[2]["source"]["data"]) == PNG
    assert "# Größe" in blocks[3]["text"] and "notes.md" in blocks[3]["text"]
    assert "a,b" in blocks[4]["text"]
    items = await client.responses.input_items.list(first_response.id)
    stored_item: Any = items.data[0]
    assert stored_item.content[1].file_id == pdf_file.id, "the content is not stored again"
    await client.responses.create(
        model="claude", input="And?", previous_response_id=first_response.id
    )
    assert files_app.claude.calls[-1]["messages"][0]["content"] == blocks
    await client.files.delete(pdf_file.id)
    with pytest.raises(openai.BadRequestError, match=pdf_file.id) as exc_info:
        await client.responses.create(
            model="claude", input="?", previous_response_id=first_response.id
        )
    assert exc_info.value.param == "previous_response_id"


@pytest.mark.parametrize("model", ["claude", "gpt"])
async def test_files_of_a_chat_reach_the_model(files_app: FilesApp, model: str) -> None:
    client = files_app.client
    uploads = {"report.pdf": PDF, "notes.txt": b"it rains", "dot.png": PNG}
    file_parts: Any = [
        {
            "type": "file",
            "file": {
                "file_id": (await client.files.create(file=(name, content), purpose="user_data")).id
            },
        }
        for name, content in uploads.items()
    ]
    await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": file_parts}], max_tokens=5
    )
    if model == "claude":
        document_part, text_part, picture_part = files_app.claude.calls[-1]["messages"][0][
            "content"
        ]
        assert base64.b64decode(document_part["source"]["data"]) == PDF
    else:
        document_part, text_part, picture_part = files_app.gpt.calls[-1]["messages"][0]["content"]
        encoded_pdf = base64.b64encode(PDF).decode()
        assert document_part["file"] == {
            "filename": "report.pdf",
            "file_data": f"data:application/pdf;base64,{encoded_pdf}",
        }
        assert picture_part["image_url"]["url"].startswith("data:image/png;base64,")
    assert "it rains" in text_part["text"]


async def test_route_explanation_accepts_files(files_app: FilesApp) -> None:
    picture = await files_app.client.files.create(file=("dot.png", PNG), purpose="vision")
    content_part = {"type": "input_image", "file_id": picture.id}
    bodies: dict[str, Any] = {
        "responses": {"model": "auto", "input": [{"role": "user", "content": [content_part]}]},
        "openai": {
            "model": "auto",
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "file", "file": {"file_id": picture.id}}],
                }
            ],
        },
    }
    headers = {"authorization": f"Bearer {files_app.models_app.api_key}"}
    async with httpx.AsyncClient(timeout=60, headers=headers) as http:
        for protocol, body in bodies.items():
            url = f"{files_app.models_app.url}/v1/route?protocol={protocol}"
            response = await http.post(url, json=body)
            assert response.status_code == 200, response.text
            assert response.json()["needs"]["vision"] is True


async def test_a_deferred_call_may_contain_files_that_must_be_converted(
    files_app: FilesApp,
) -> None:
    stored_file = await files_app.client.files.create(
        file=("a.txt", b"it rains"), purpose="user_data"
    )
    content_part = {"type": "file", "file": {"file_id": stored_file.id}}
    headers = {
        "authorization": f"Bearer {files_app.models_app.api_key}",
        "prefer": "respond-async",
    }
    async with httpx.AsyncClient(timeout=60, headers=headers) as http:
        response = await http.post(
            f"{files_app.models_app.url}/v1/chat/completions",
            json={"model": "claude", "messages": [{"role": "user", "content": [content_part]}]},
        )
    # The call is good. The jobs API, to which it is then submitted, does not exist here.
    assert response.status_code == 503, response.text


async def test_the_example_of_the_page_is_read_by_claude(
    files_app: FilesApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.pdf").write_bytes(PDF)
    monkeypatch.chdir(tmp_path)
    example = read_example("docs/clients.md", "files", "python")
    code = example.replace("claude-haiku-5-5", "claude")
    url, key = f"{files_app.models_app.url}/v1", files_app.models_app.api_key
    with openai.OpenAI(base_url=url, api_key=key) as client:
        await asyncio.to_thread(exec, code, {"client": client})
    document, question = files_app.claude.calls[-1]["messages"][0]["content"]
    assert base64.b64decode(document["source"]["data"]) == PDF
    assert question["text"] == "What does it say?"


async def test_members_that_no_model_reads_are_refused_by_name(files_app: FilesApp) -> None:
    client = files_app.client
    zip_file = await client.files.create(file=("a.zip", b"PK\x03\x04\xff\xfe"), purpose="user_data")
    content_part: Any = {"type": "input_file", "file_id": zip_file.id}
    with pytest.raises(openai.BadRequestError, match="application/zip") as exc_info:
        await client.responses.create(
            model="claude", input=[{"role": "user", "content": [content_part]}]
        )
    assert exc_info.value.code == "unsupported_feature"
    assert exc_info.value.param == "input.0.content.0.file_id"
    missing_part: Any = {"type": "file", "file": {"file_id": "file-" + "0" * 32}}
    with pytest.raises(openai.BadRequestError) as missing_file_error:
        await client.chat.completions.create(
            model="gpt", messages=[{"role": "user", "content": [missing_part]}]
        )
    assert missing_file_error.value.param == "messages.0.content.0.file.file_id"
    assert not files_app.gpt.calls
