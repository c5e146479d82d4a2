"""`HostPaths`: takes the worker's absolute paths out of what ComfyUI says, where it enters.

Tracebacks, error messages and answers of ComfyUI name files of the machine: they tell a client the
operator's account, the layout of the disk and where other tenants' files lie. Known folders become
stable names (``<comfyui>/nodes.py``), so that a traceback still says where it came from. Where
ComfyUI speaks of an error, any other absolute path becomes ``<path>``; in outputs that is left alone,
since a text that a node puts out may be the client's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import moyin
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.protocol.binary import text_of, with_text
from moyin.render.protocol.wire import Message

__all__ = ["HostPaths"]

OTHER = "<path>"
# A path that exists begins with one of these or of what the machine has at its root.
_TOP = (
    "Users", "Volumes", "app", "bin", "boot", "content", "data", "dev", "etc", "home", "lib", "lib32",
    "lib64", "media", "mnt", "nix", "opt", "private", "proc", "root", "run", "sbin", "scratch", "shared",
    "snap", "srv", "storage", "sys", "tmp", "usr", "var", "work", "workspace",
)  # fmt: skip
# They hold ids and numbers, and come many times a second.
_WITHOUT_PATHS = frozenset(
    {"executing", "execution_cached", "execution_start", "progress", "progress_state", "status"}
)
_FAILURE = "execution_error"


class HostPaths:
    """The paths of one worker.

    Args:
        known: names to put in the place of folders.
    """

    def __init__(self, known: Mapping[Path, str]) -> None:
        names: dict[str, str] = {}
        for folder, name in known.items():
            for spelling in (folder, folder.absolute(), _resolved(folder)):
                if spelling.is_absolute() and spelling != Path(spelling.anchor):
                    names.setdefault(str(spelling), name)
        self._names = names | {_escaped(spelling): name for spelling, name in names.items()}
        longest = sorted(self._names, key=len, reverse=True)
        # The slash comes first, so that the search for it is fast. A folder's name ends there.
        self._known = re.compile(
            "(?!)"
            if not longest
            else rf"/(?<![\w.]/)(?:{'|'.join(re.escape(one[1:]) for one in longest)})(?![\w-]|\.\w)"
        )
        tops = "|".join(re.escape(name) for name in sorted({*_TOP, *_roots()}))
        rest = r"\b(?:/[^\s'\"\\,;:)\]}<>|]*)*"
        # Of a URL only `file:///…` names a file here.
        self._other = re.compile(rf"(?:/(?<![\w.:/<>)-]/)|(?<=:///))(?:{tops}){rest}")
        self._quoted = re.compile(rf"(?P<quote>['\"])/(?:{tops})(?:/[^'\"\n\\]*)?(?P=quote)")

    @classmethod
    def of(cls, options: ComfyOptions) -> HostPaths:
        """Return the paths of the machine that runs a process with these options."""
        folder = options.folder
        base = folder / "base"
        environment = options.python.parent.parent
        known = {
            options.home: "<comfyui>",
            **{base / name: f"<{name}>" for name in ("input", "output", "temp", "user", "scratch")},
            **{path: f"<custom_nodes>/{path.name}" for path in options.custom_nodes},
            base / "custom_nodes": "<custom_nodes>",
            base / "models": "<models>",
            options.models: "<models>",
            folder: "<folder>",
            environment: "<python>",
            # A virtual environment's interpreter has its standard library elsewhere.
            _resolved(options.python).parent.parent: "<python>",
            Path(moyin.__file__).parent: "<moyin>",
        }
        return cls(known)

    def hide_known(self, text: str) -> str:
        """Return the text with names for the known folders."""
        return self._known.sub(lambda found: self._names[found[0]], text) if "/" in text else text

    def hide(self, text: str) -> str:
        """Return the text without absolute paths."""
        if "/" not in text:
            return text
        text = self._quoted.sub(rf"\g<quote>{OTHER}\g<quote>", self.hide_known(text))
        return self._other.sub(OTHER, text)

    def hide_known_in(self, body: bytes) -> bytes:
        """Return a JSON text with names for the known folders."""
        return _recoded(body, self.hide_known)

    def hide_in(self, body: bytes) -> bytes:
        """Return a JSON text without absolute paths."""
        return _recoded(body, self.hide)

    def hide_answer(self, value: Any) -> Any:
        """Return JSON without absolute paths, in keys and texts of any depth."""
        return _mapped(value, self.hide)

    def event(self, message: Message) -> Message:
        """Return an event of ComfyUI's as clients may see it."""
        if message.type in _WITHOUT_PATHS:
            return message
        hide = self.hide if message.type == _FAILURE else self.hide_known
        return message.model_copy(update={"data": _mapped(message.data, hide)})

    def frame(self, frame: bytes) -> bytes:
        """Return a binary frame as clients may see it: some hold a text of a node."""
        text = text_of(frame)
        return frame if text is None else with_text(frame, self.hide_known(text))

    def standing(self, answer: Any) -> Any:
        """Return the bridge's answer about a prompt as clients may see it: errors hold paths."""
        messages = _messages(answer)
        for index, message in enumerate(messages):
            if isinstance(message, list) and len(message) == 2 and message[0] == _FAILURE:
                messages[index] = [_FAILURE, self.hide_answer(message[1])]
        return answer


def _recoded(body: bytes, hide: Callable[[str], str]) -> bytes:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        # It is no JSON, which its reader finds out.
        return body
    return hide(text).encode()


def _messages(answer: Any) -> list[Any]:
    found = answer
    for name in ("entry", "status", "messages"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, list) else []


def _mapped(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {_mapped(key, hide): _mapped(item, hide) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, hide) for item in value]
    return value


def _roots() -> Iterable[str]:
    try:
        return [path.name for path in Path("/").iterdir()]
    except OSError:
        # A machine that hides its root: the usual names must do.
        return []


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        # A loop of links leads nowhere.
        return path.absolute()


def _escaped(path: str) -> str:
    """Return a path as it stands in JSON."""
    return json.dumps(path)[1:-1]
