"""Which tests share the whole farm of the fixture ``door``, and that they do so in one process.

A farm takes a minute of both cores to start and a quarter of one to stay up.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from xdist.scheduler.loadfile import LoadFileScheduling

__all__ = ["FarmScheduling", "shares_the_farm"]

_ROOT = Path(__file__).parents[1]
_FIXTURE = "door"


class FarmScheduling(LoadFileScheduling):
    """A file stays together, and all that share the farm do."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return _FIXTURE if shares_the_farm(_ROOT / file) else file


@cache
def shares_the_farm(file: Path) -> bool:
    """Whether a function in it takes ``door``, and it has none of its own.

    By its text, because xdist's scheduler knows no more of a test than its name.
    """
    functions = [
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    own = any(function.name == _FIXTURE for function in functions)
    takes = any(
        argument.arg == _FIXTURE
        for function in functions
        if function.name.startswith("test_") or function.decorator_list
        for argument in function.args.args
    )
    return takes and not own
