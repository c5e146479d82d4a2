"""Stores answers of the Responses API per tenant, so that a request can continue an earlier one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from pydantic_core import from_json, to_json
from sqlalchemy.dialects import postgresql, sqlite

from moyin.errors import BodyTooLarge, ResponseNotFound
from moyin.store.schema import responses
from moyin.store.sql import Database, now

_KEPT = timedelta(days=30)
_MAX_RESPONSES = 10_000
# The number of answers that are added between two deletions of old or excess answers.
_DELETION_INTERVAL = 100
# Longer conversations exceed every model's context.
_MAX_ANSWERS = 1_000
_MAX_BYTES = 16 * 1024 * 1024
_SIZE = sa.func.length(responses.c.input) + sa.func.length(responses.c.response)
_INSERT = {
    "sqlite": sqlite.insert(responses).on_conflict_do_nothing(index_elements=["id"]),
    "postgresql": postgresql.insert(responses).on_conflict_do_nothing(index_elements=["id"]),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredResponse:
    """Holds one answer with its request.

    Attributes:
        previous: the id of the answer that the request continues; None if it begins a conversation.
        input: the items of the request itself, without those of earlier requests.
        response: the response object as the client received it.
        proofs: the ``encrypted_content`` of reasoning items, by item id. It is stored even if the
            client did not ask for it, because the provider needs it in later requests.
    """

    id: str
    owner: str
    previous: str | None
    input: Sequence[Mapping[str, Any]]
    response: Mapping[str, Any]
    proofs: Mapping[str, str]


class StoredResponses:
    """Reads and writes stored answers. Every query is limited to the rows of one tenant.

    Answers are deleted after thirty days. A tenant keeps at most `max_responses`: the newest ones.
    """

    def __init__(self, database: Database, *, max_responses: int = _MAX_RESPONSES) -> None:
        self._database = database
        self._max_responses = max_responses
        self._added = 0

    async def add(self, stored_response: StoredResponse) -> None:
        """Store an answer, unless one with its id is stored already."""
        self._added += 1
        is_deletion_due = self._added % _DELETION_INTERVAL == 1 % _DELETION_INTERVAL
        row = {
            "id": stored_response.id,
            "owner": stored_response.owner,
            "previous": stored_response.previous,
            "input": to_json(stored_response.input),
            "response": to_json(stored_response.response),
            "proofs": to_json(stored_response.proofs),
            "created_at": now(),
        }

        def write(connection: sa.Connection) -> None:
            connection.execute(_INSERT[connection.dialect.name], row)
            if is_deletion_due:
                connection.execute(responses.delete().where(responses.c.created_at < now() - _KEPT))
                connection.execute(self._build_excess_deletion(stored_response.owner))

        await self._database.write(write)

    async def get(self, owner: str, response_id: str) -> StoredResponse:
        """Return an answer of the tenant.

        Raises:
            ResponseNotFound: the tenant has no answer with this id.
        """
        stored_response = await self.find(owner, response_id)
        if stored_response is None:
            raise _new_not_found_error(response_id)
        return stored_response

    async def find(self, owner: str, response_id: str) -> StoredResponse | None:
        """Return an answer, or None if the tenant has no answer with this id."""
        query = sa.select(responses).where(_has_id(owner, response_id))
        row = await self._database.read(lambda c: c.execute(query).mappings().one_or_none())
        return None if row is None else _parse_response(row)

    async def update(self, stored_response: StoredResponse) -> None:
        """Replace the response object of an answer, unless the answer was deleted meanwhile."""
        statement = responses.update().where(_has_id(stored_response.owner, stored_response.id))
        statement = statement.values(response=to_json(stored_response.response))
        await self._database.write(lambda c: c.execute(statement))

    async def find_items(
        self, owner: str, answer_ids_by_item: Mapping[str, str]
    ) -> dict[str, Mapping[str, Any]]:
        """Return items that answers contain, by item id; leave out those whose answer is gone.

        Only the outputs of answers are searched, and not the inputs of their requests, because
        clients refer only to items of answers.

        Args:
            answer_ids_by_item: for each item id, the id of the answer that contains the item.

        Raises:
            BodyTooLarge: the answers together are larger than 16 MiB.
        """
        condition = sa.and_(
            responses.c.owner == owner,
            responses.c.id.in_(set(answer_ids_by_item.values())),
            responses.c.created_at >= now() - _KEPT,
        )
        size_query = sa.select(
            sa.func.coalesce(sa.func.sum(sa.func.length(responses.c.response)), 0)
        )
        size_bytes = await self._database.read(
            lambda c: c.execute(size_query.where(condition)).scalar_one()
        )
        if size_bytes > _MAX_BYTES:
            raise BodyTooLarge(
                f"input: the answers of the item_references have {size_bytes} bytes; the limit is "
                f"{_MAX_BYTES}: refer to fewer, or send the items themselves",
                field="input",
                details={"max_bytes": _MAX_BYTES},
            )
        query = sa.select(responses.c.response, responses.c.proofs).where(condition)
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        items = await asyncio.to_thread(
            lambda: [
                item
                for row in rows
                for item in _build_output_items(
                    from_json(row["response"]), from_json(row["proofs"])
                )
            ]
        )
        return {item["id"]: item for item in items if item.get("id") in answer_ids_by_item}

    async def list_items(self, owner: str, response_id: str) -> list[Mapping[str, Any]]:
        """Return all items of the conversation that ends with this answer, oldest first.

        Raises:
            ResponseNotFound: an answer of the conversation does not exist, or was deleted.
            BodyTooLarge: the conversation is larger than 16 MiB.
        """
        last_answer = sa.select(
            responses.c.id, responses.c.previous, sa.literal(0).label("depth")
        ).where(_has_id(owner, response_id))
        conversation = last_answer.cte("chain", recursive=True)
        conversation = conversation.union_all(
            sa.select(responses.c.id, responses.c.previous, conversation.c.depth + 1).where(
                responses.c.owner == owner,
                responses.c.id == conversation.c.previous,
                conversation.c.depth < _MAX_ANSWERS,
                responses.c.created_at >= now() - _KEPT,
            )
        )
        size_query = sa.select(sa.func.coalesce(sa.func.sum(_SIZE), 0)).join(
            conversation, responses.c.id == conversation.c.id
        )
        _enforce_size_limit(await self._database.read(lambda c: c.execute(size_query).scalar_one()))
        query = (
            sa.select(responses)
            .join(conversation, responses.c.id == conversation.c.id)
            .order_by(conversation.c.depth.desc())
        )
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        if not rows or rows[0]["previous"] is not None:
            raise _new_not_found_error(rows[0]["previous"] if rows else response_id)
        return await asyncio.to_thread(
            lambda: [item for row in rows for item in _join_items(_parse_response(row))]
        )

    async def delete(self, owner: str, response_id: str) -> None:
        """Delete an answer.

        Raises:
            ResponseNotFound: the tenant has no answer with this id.
        """
        statement = responses.delete().where(_has_id(owner, response_id))
        if not await self._database.write(lambda c: c.execute(statement).rowcount):
            raise _new_not_found_error(response_id)

    def _build_excess_deletion(self, owner: str) -> sa.Delete:
        oldest_kept_at = (
            sa.select(responses.c.created_at)
            .where(responses.c.owner == owner)
            .order_by(responses.c.created_at.desc())
            .offset(self._max_responses - 1)
            .limit(1)
            .scalar_subquery()
        )
        return responses.delete().where(
            responses.c.owner == owner, responses.c.created_at < oldest_kept_at
        )


def _has_id(owner: str, response_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        responses.c.owner == owner,
        responses.c.id == response_id,
        responses.c.created_at >= now() - _KEPT,
    )


def _enforce_size_limit(size_bytes: int) -> None:
    if size_bytes > _MAX_BYTES:
        raise BodyTooLarge(
            f"previous_response_id: the conversation has {size_bytes} bytes; the limit is {_MAX_BYTES}: "
            "begin a new one, or send its newest part as input",
            field="previous_response_id",
            details={"max_bytes": _MAX_BYTES},
        )


def _new_not_found_error(response_id: str) -> ResponseNotFound:
    return ResponseNotFound(
        f"there is no stored response {response_id!r}: it may have been deleted, be older than "
        f"{_KEPT.days} days, or have been requested with store: false"
    )


def _parse_response(row: Mapping[Any, Any]) -> StoredResponse:
    return StoredResponse(
        id=row["id"],
        owner=row["owner"],
        previous=row["previous"],
        input=from_json(row["input"]),
        response=from_json(row["response"]),
        proofs=from_json(row["proofs"]),
    )


def _join_items(stored_response: StoredResponse) -> list[Mapping[str, Any]]:
    return [
        *stored_response.input,
        *_build_output_items(stored_response.response, stored_response.proofs),
    ]


def _build_output_items(
    response: Mapping[str, Any], proofs: Mapping[str, str]
) -> list[Mapping[str, Any]]:
    return [
        item | {"encrypted_content": proofs[item["id"]]} if item["id"] in proofs else item
        for item in response["output"]
    ]
