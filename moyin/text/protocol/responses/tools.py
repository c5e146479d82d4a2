"""Gives tools of the Responses API the names under which models know them.

Other protocols have no namespaces, so the name of a tool in one begins with that of the namespace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moyin.errors import InvalidRequest
from moyin.text.protocol.responses import wire


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """Holds a tool that the client offers.

    Attributes:
        namespace: the namespace that the tool belongs to, if any.
        field: the place of the tool in the request.
    """

    tool: wire.FunctionTool | wire.CustomTool
    namespace: str | None
    field: str

    @property
    def is_custom(self) -> bool:
        """True if the tool's argument is free text."""
        return isinstance(self.tool, wire.CustomTool)


def join_name(namespace: str | None, name: str) -> str:
    """Return the name under which a model knows a tool."""
    return name if namespace is None else f"{namespace}__{name}"


def list_tools(body: wire.ResponseBody) -> Mapping[str, OfferedTool]:
    """Return the tools of a request by the names under which models know them.

    Raises:
        InvalidRequest: two tools have the same name.
    """
    tools: dict[str, OfferedTool] = {}
    for offered in _flatten(body):
        name = join_name(offered.namespace, offered.tool.name)
        if name in tools:
            raise InvalidRequest(
                f"{offered.field}.name: {name!r} is also the name of {tools[name].field}; "
                "each tool needs a name of its own",
                field=f"{offered.field}.name",
            )
        tools[name] = offered
    return tools


def _flatten(body: wire.ResponseBody) -> Iterator[OfferedTool]:
    for number, tool in enumerate(body.tools or ()):
        if isinstance(tool, wire.NamespaceTool):
            for place, inner in enumerate(tool.tools):
                yield OfferedTool(inner, tool.name, f"tools.{number}.tools.{place}")
        else:
            yield OfferedTool(tool, None, f"tools.{number}")
