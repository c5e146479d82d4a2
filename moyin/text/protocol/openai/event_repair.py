"""Adds the members that OpenAI's reference requires in events and that some servers leave out.

Gemini's tool calls have no ``index`` or all the same, sometimes have no ``id``, and end with the
finish reason ``stop``. Azure's events about filtered content lack ``delta``, ``object`` and more.
"""

from __future__ import annotations

from typing import Any

from moyin.text.protocol.openai.response import new_tool_call_id

_OBJECT = "chat.completion.chunk"


class EventRepair:
    """Adds missing members to the events of one stream, and counts its tool calls to number them.

    Only events of chats are repaired: those with a member ``object`` or a choice with ``delta``.
    """

    def __init__(self) -> None:
        # Number of tool calls so far, by the index of the choice.
        self._calls: dict[int, int] = {}
        # Ids of tool calls, by choice and by the index that the client gets.
        self._ids: dict[tuple[int, int], Any] = {}
        # Index that the client gets, by choice and back end's index; only where the two differ.
        self._new_indexes: dict[tuple[int, int], int] = {}

    def apply(self, body: dict[str, Any]) -> bool:
        """Add missing members to an event; return True if the event was changed."""
        choices = body.get("choices")
        if not isinstance(choices, list) or any(
            "text" in c for c in choices if isinstance(c, dict)
        ):
            # The event belongs to a text completion, not to a chat.
            return False
        is_changed = False
        if body.get("object") == "":
            body["object"] = _OBJECT
            is_changed = True
        for choice in choices:
            if isinstance(choice, dict):
                is_changed |= self._repair_choice(choice)
        return is_changed

    def _repair_choice(self, choice: dict[str, Any]) -> bool:
        is_changed = "delta" not in choice
        delta = choice.setdefault("delta", {})
        number = choice.get("index", 0)
        if isinstance(delta, dict) and isinstance(number, int):
            calls = delta.get("tool_calls")
            for call in calls if isinstance(calls, list) else ():
                if isinstance(call, dict):
                    is_changed |= self._repair_call(number, call)
            # As in whole answers; `_complete_tool_calls` explains why.
            if choice.get("finish_reason") == "stop" and self._calls.get(number):
                choice["finish_reason"] = "tool_calls"
                is_changed = True
        return is_changed

    def _repair_call(self, number: int, call: dict[str, Any]) -> bool:
        count = self._calls.get(number, 0)
        function = call.get("function")
        has_name = isinstance(function, dict) and bool(function.get("name"))
        index = call.get("index")
        is_changed = True
        if isinstance(index, int):
            new_index = self._new_indexes.get((number, index), index)
            # Gemini may give every call the index 0, with different ids and names.
            identifier, known_id = call.get("id"), self._ids.get((number, new_index))
            if has_name and identifier and known_id and identifier != known_id:
                new_index = self._new_indexes[number, index] = count
            is_new = new_index >= count
            is_changed = new_index != index
            self._calls[number] = max(count, new_index + 1)
        else:
            # A call without index has its name only in its first event.
            is_new = has_name
            new_index = count if is_new else max(count - 1, 0)
            self._calls[number] = new_index + 1
        call["index"] = new_index
        if is_new and has_name and not call.get("id"):
            call["id"] = new_tool_call_id()
            is_changed = True
        if is_new and has_name and not call.get("type"):
            call["type"] = "function"
            is_changed = True
        if has_name:
            self._ids[number, new_index] = call.get("id")
        return is_changed
