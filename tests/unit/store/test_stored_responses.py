from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from moyin.errors import BodyTooLarge, ResponseNotFound
from moyin.store import stored_responses
from moyin.store.sql import Database, now
from moyin.store.stored_responses import StoredResponse, StoredResponses


def make_user_message(text: str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": "user", "content": content}


def make_response(
    number: int, *, owner: str = "ada", previous_number: int | None = None
) -> StoredResponse:
    output = [{"type": "reasoning", "id": f"rs_{number}", "encrypted_content": None}]
    return StoredResponse(
        id=f"resp_{number}",
        owner=owner,
        previous=None if previous_number is None else f"resp_{previous_number}",
        input=[make_user_message(f"question {number}")],
        response={"id": f"resp_{number}", "output": output},
        proofs={f"rs_{number}": f"proof {number}"},
    )


@pytest.fixture
def responses(database: Database) -> StoredResponses:
    return StoredResponses(database)


async def test_stored_response_is_returned_unchanged(responses: StoredResponses) -> None:
    await responses.add(make_response(1))
    assert await responses.get("ada", "resp_1") == make_response(1)


async def test_response_is_stored_once_and_updated(responses: StoredResponses) -> None:
    await responses.add(make_response(1))
    await responses.add(
        replace(make_response(1), owner="bob", response={"id": "resp_1", "output": []})
    )
    assert await responses.get("ada", "resp_1") == make_response(1)
    assert await responses.find("bob", "resp_1") is None
    changed_response = replace(
        make_response(1), response={"id": "resp_1", "output": [make_user_message("x")]}
    )
    await responses.update(changed_response)
    assert await responses.get("ada", "resp_1") == changed_response
    await responses.update(replace(make_response(1), owner="bob"))
    assert await responses.get("ada", "resp_1") == changed_response
    await responses.delete("ada", "resp_1")
    await responses.update(changed_response)
    assert await responses.find("ada", "resp_1") is None


async def test_a_chain_is_listed_oldest_first_with_its_proofs(responses: StoredResponses) -> None:
    await responses.add(make_response(1))
    await responses.add(make_response(2, previous_number=1))
    await responses.add(make_response(3, previous_number=2))
    await responses.add(make_response(9, previous_number=1))
    items = await responses.list_items("ada", "resp_3")
    texts = [item["content"][0]["text"] for item in items if item["type"] == "message"]
    assert texts == ["question 1", "question 2", "question 3"]
    proofs = [item["encrypted_content"] for item in items if item["type"] == "reasoning"]
    assert proofs == ["proof 1", "proof 2", "proof 3"]
    assert (await responses.get("ada", "resp_3")).response == make_response(3).response, (
        "without the proof"
    )


async def test_items_are_found_with_their_proofs(responses: StoredResponses) -> None:
    for number in (1, 2):
        await responses.add(make_response(number))
    await responses.add(make_response(3, owner="bob"))
    response_ids = {"rs_1": "resp_1", "rs_2": "resp_2", "rs_3": "resp_3", "msg_9": "resp_1"}
    items = await responses.find_items("ada", response_ids)
    assert {name: item["encrypted_content"] for name, item in items.items()} == {
        "rs_1": "proof 1",
        "rs_2": "proof 2",
    }


async def test_stored_requests_do_not_count_for_the_size_limit(
    responses: StoredResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on referenced answers does not count their stored input, which repeats earlier turns."""
    monkeypatch.setattr(stored_responses, "_MAX_BYTES", 10_000)
    for number in (1, 2):
        await responses.add(replace(make_response(number), input=[make_user_message("x" * 9_000)]))
    response_ids = {"rs_1": "resp_1", "rs_2": "resp_2"}
    assert (await responses.find_items("ada", response_ids)).keys() == response_ids.keys()
    output = [{"type": "message", "id": "msg_3", "content": "x" * 10_000}]
    await responses.add(replace(make_response(3), response={"id": "resp_3", "output": output}))
    with pytest.raises(BodyTooLarge, match=r"^input: ") as exc_info:
        await responses.find_items("ada", {"msg_3": "resp_3"})
    assert exc_info.value.field == "input"
    with pytest.raises(BodyTooLarge) as exc_info:
        await responses.list_items("ada", "resp_3")
    assert exc_info.value.field == "previous_response_id"


async def test_error_of_a_broken_chain_names_the_missing_response(
    responses: StoredResponses,
) -> None:
    await responses.add(make_response(1))
    await responses.add(make_response(2, previous_number=1))
    await responses.add(make_response(3, previous_number=2))
    await responses.delete("ada", "resp_1")
    with pytest.raises(ResponseNotFound, match="'resp_1'"):
        await responses.list_items("ada", "resp_3")


async def test_length_of_a_chain_is_bounded(
    responses: StoredResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_responses, "_MAX_ANSWERS", 2)
    for number in range(5):
        await responses.add(make_response(number, previous_number=number - 1 if number else None))
    assert len(await responses.list_items("ada", "resp_2")) == 6
    with pytest.raises(ResponseNotFound, match="'resp_0'"):
        await responses.list_items("ada", "resp_3")


async def test_tenants_never_see_each_others_responses(responses: StoredResponses) -> None:
    await responses.add(make_response(1))
    await responses.add(make_response(2, owner="bob", previous_number=1))
    for operation in (responses.get, responses.list_items, responses.delete):
        with pytest.raises(ResponseNotFound, match="'resp_1'"):
            await operation("bob", "resp_1")
    with pytest.raises(ResponseNotFound, match="'resp_1'"):
        await responses.list_items("bob", "resp_2")
    assert await responses.get("ada", "resp_1") == make_response(1)


async def test_deleted_response_is_not_found(responses: StoredResponses) -> None:
    await responses.add(make_response(1))
    await responses.delete("ada", "resp_1")
    for operation in (responses.get, responses.delete):
        with pytest.raises(ResponseNotFound):
            await operation("ada", "resp_1")


async def test_a_tenants_oldest_responses_beyond_the_bound_are_deleted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_responses, "_DELETION_INTERVAL", 1)
    started_at = now()
    times = (started_at + timedelta(seconds=seconds) for seconds in range(100))
    monkeypatch.setattr(stored_responses, "now", lambda: next(times))
    response_store = StoredResponses(database, max_responses=2)
    await response_store.add(make_response(100, owner="bob"))
    for number in range(4):
        await response_store.add(make_response(number))
    for deleted_number in (0, 1):
        with pytest.raises(ResponseNotFound):
            await response_store.get("ada", f"resp_{deleted_number}")
    assert await response_store.get("ada", "resp_2") and await response_store.get("ada", "resp_3")
    assert await response_store.get("bob", "resp_100"), "another tenant's answer is older and stays"


async def test_responses_of_all_tenants_expire(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_responses, "_DELETION_INTERVAL", 1)
    response_store = StoredResponses(database)
    long_ago = now() - timedelta(days=31)
    monkeypatch.setattr(stored_responses, "now", lambda: long_ago)
    await response_store.add(make_response(1, owner="bob"))
    monkeypatch.setattr(stored_responses, "now", lambda: long_ago + timedelta(days=2))
    await response_store.add(make_response(2))
    monkeypatch.setattr(stored_responses, "now", now)
    await response_store.add(make_response(3))
    with pytest.raises(ResponseNotFound):
        await response_store.get("bob", "resp_1")
    assert await response_store.get("ada", "resp_2")
