"""Adds the members that OpenAI's reference requires in events and that some servers leave out.

Gemini's tool calls have no ``index`` or all have the same one, sometimes have no ``id``, and end with
the finish reason ``stop``. Azure's events about filtered content lack ``delta`` and ``object``.
"""

from __future__ import annotations

from typing import Any

from moyin.text.protocol.openai.response import new_tool_call_id

_OBJECT = "chat.completion.chunk"


class EventRepair:
    """Adds missing members to the events of one stream, and numbers its tool calls.

    Only events of chats are repaired: those with a member ``object`` or a choice with ``delta``.
    """

    def __init__(self) -> None:
        # Number of tool calls so far, by the index of the choice.
        self._calls: dict[int, int] = {}
        # Ids of tool calls, by choice and by the index that the client gets.
        self._ids: dict[tuple[int, int], Any] = {}
        # Index that the client gets, by choice and back end's index; only where the two differ.
        self._new_indexes: dict[tuple[int, int], int] = {}

    def repair_event(self, body: dict[str, Any]) -> bool:
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
        choice_index = choice.get("index", 0)
        if isinstance(delta, dict) and isinstance(choice_index, int):
            tool_calls = delta.get("tool_calls")
            for tool_call in tool_calls if isinstance(tool_calls, list) else ():
                if isinstance(tool_call, dict):
                    is_changed |= self._repair_call(choice_index, tool_call)
            # As in whole answers; `_complete_tool_calls` explains why.
            if choice.get("finish_reason") == "stop" and self._calls.get(choice_index):
                choice["finish_reason"] = "tool_calls"
                is_changed = True
        return is_changed

    def _repair_call(self, choice_index: int, tool_call: dict[str, Any]) -> bool:
        call_count = self._calls.get(choice_index, 0)
        function = tool_call.get("function")
        has_name = isinstance(function, dict) and bool(function.get("name"))
        index = tool_call.get("index")
        is_changed = True
        if isinstance(index, int):
            new_index = self._new_indexes.get((choice_index, index), index)
            # Gemini may give every call the index 0, with different ids and names.
            call_id, known_id = tool_call.get("id"), self._ids.get((choice_index, new_index))
            if has_name and call_id and known_id and call_id != known_id:
                new_index = self._new_indexes[choice_index, index] = call_count
            is_new = new_index >= call_count
            is_changed = new_index != index
            self._calls[choice_index] = max(call_count, new_index + 1)
        else:
            # A call without index has its name only in its first event.
            is_new = has_name
            new_index = call_count if is_new else max(call_count - 1, 0)
            self._calls[choice_index] = new_index + 1
        tool_call["index"] = new_index
        if is_new and has_name and not tool_call.get("id"):
            tool_call["id"] = new_tool_call_id()
            is_changed = True
        if is_new and has_name and not tool_call.get("type"):
            tool_call["type"] = "function"
            is_changed = True
        if has_name:
            self._ids[choice_index, new_index] = tool_call.get("id")
        return is_changed
