"""Adds to OpenAI events what the vendor's document requires and some servers leave out.

Gemini gives tool calls no ``index`` or all of them the same, sometimes no ``id``, and the finish
reason ``stop``. Azure's events about filtered content lack ``delta``, ``object`` and more.
"""

from __future__ import annotations

from typing import Any

from moyin.text.protocol.openai.response import new_tool_call_id

_OBJECT = "chat.completion.chunk"


class EventRepair:
    """Repairs the events of one stream, of which it knows the tool calls.

    Only chats' events are repaired, which have a member ``object`` or a choice with ``delta``.
    """

    def __init__(self) -> None:
        # The number of tool calls so far, by the index of their choice.
        self._calls: dict[int, int] = {}
        # The ids of tool calls, by their choice and their index for the client.
        self._ids: dict[tuple[int, int], Any] = {}
        # The index for the client, by choice and the back end's index, where they differ.
        self._moved: dict[tuple[int, int], int] = {}

    def apply(self, body: dict[str, Any]) -> bool:
        """Add missing members to an event; return True if the event was changed."""
        choices = body.get("choices")
        if not isinstance(choices, list) or any(
            "text" in c for c in choices if isinstance(c, dict)
        ):
            # Not an event of a chat, but of a text completion.
            return False
        changed = False
        if body.get("object") == "":
            body["object"] = _OBJECT
            changed = True
        for choice in choices:
            if isinstance(choice, dict):
                changed |= self._repair_choice(choice)
        return changed

    def _repair_choice(self, choice: dict[str, Any]) -> bool:
        changed = "delta" not in choice
        delta = choice.setdefault("delta", {})
        number = choice.get("index", 0)
        if isinstance(delta, dict) and isinstance(number, int):
            calls = delta.get("tool_calls")
            for call in calls if isinstance(calls, list) else ():
                if isinstance(call, dict):
                    changed |= self._repair_call(number, call)
            # As in whole answers: `add_missing_members` says why.
            if choice.get("finish_reason") == "stop" and self._calls.get(number):
                choice["finish_reason"] = "tool_calls"
                changed = True
        return changed

    def _repair_call(self, number: int, call: dict[str, Any]) -> bool:
        count = self._calls.get(number, 0)
        function = call.get("function")
        begins = isinstance(function, dict) and bool(function.get("name"))
        index = call.get("index")
        changed = True
        if isinstance(index, int):
            place = self._moved.get((number, index), index)
            # Each call of Gemini may have the index 0, beside an id and a name of its own.
            identifier, known = call.get("id"), self._ids.get((number, place))
            if begins and identifier and known and identifier != known:
                place = self._moved[number, index] = count
            is_new = place >= count
            changed = place != index
            self._calls[number] = max(count, place + 1)
        else:
            # Without index a call has its name at its beginning only.
            is_new = begins
            place = count if is_new else max(count - 1, 0)
            self._calls[number] = place + 1
        call["index"] = place
        if is_new and begins and not call.get("id"):
            call["id"] = new_tool_call_id()
            changed = True
        if is_new and begins and not call.get("type"):
            call["type"] = "function"
            changed = True
        if begins:
            self._ids[number, place] = call.get("id")
        return changed
