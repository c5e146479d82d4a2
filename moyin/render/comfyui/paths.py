"""Removes absolute paths of the machine from ComfyUI's responses and events.

Tracebacks, error messages and responses of ComfyUI contain paths that would reveal the operator's
account, the layout of the disk and the location of other tenants' files. Known folders are replaced
by stable names (``<comfyui>/nodes.py``), so that a traceback still shows its origin. Any other
absolute path is replaced by ``<path>`` in error messages, but kept in the outputs of nodes, where
the client itself may have written it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import moyin
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.protocol.binary import read_frame_text, replace_frame_text
from moyin.render.protocol.wire import EventMessage

PLACEHOLDER = "<path>"
# An absolute path is recognised by its first folder: one of these, or an entry of the root folder.
_TOP_NAMES = (
    "Users", "Volumes", "app", "bin", "boot", "content", "data", "dev", "etc", "home", "lib", "lib32",
    "lib64", "media", "mnt", "nix", "opt", "private", "proc", "root", "run", "sbin", "scratch", "shared",
    "snap", "srv", "storage", "sys", "tmp", "usr", "var", "work", "workspace",
)  # fmt: skip
# These frequent events contain only ids and numbers, so they are not searched for paths.
_WITHOUT_PATHS = frozenset(
    {"executing", "execution_cached", "execution_start", "progress", "progress_state", "status"}
)
_ERROR_EVENT = "execution_error"


class HostPathFilter:
    """Replaces paths of the machine in the texts that one ComfyUI process sends.

    Args:
        known_folders: a mapping from known folders to the names that replace them.
    """

    def __init__(self, known_folders: Mapping[Path, str]) -> None:
        names: dict[str, str] = {}
        for folder, name in known_folders.items():
            for path_form in (folder, folder.absolute(), _resolve_path(folder)):
                if path_form.is_absolute() and path_form != Path(path_form.anchor):
                    names.setdefault(str(path_form), name)
        self._names = names | {_escape_path(path_form): name for path_form, name in names.items()}
        paths_longest_first = sorted(self._names, key=len, reverse=True)
        # Patterns that begin with a slash make the search fast. The lookahead ensures that the
        # match ends at the end of a folder's name.
        folder_pattern = "|".join(re.escape(path[1:]) for path in paths_longest_first)
        self._known = re.compile(
            rf"/(?<![\w.]/)(?:{folder_pattern})(?![\w-]|\.\w)" if paths_longest_first else "(?!)"
        )
        top_name_pattern = "|".join(
            re.escape(name) for name in sorted({*_TOP_NAMES, *_list_root_names()})
        )
        rest_pattern = r"\b(?:/[^\s'\"\\,;:)\]}<>|]*)*"
        # `file:///…` is the only kind of URL that names a file of this machine.
        self._other = re.compile(
            rf"(?:/(?<![\w.:/<>)-]/)|(?<=:///))(?:{top_name_pattern}){rest_pattern}"
        )
        self._quoted = re.compile(
            rf"(?P<quote>['\"])/(?:{top_name_pattern})(?:/[^'\"\n\\]*)?(?P=quote)"
        )

    @classmethod
    def create_for_process(cls, options: ComfyOptions) -> HostPathFilter:
        """Create the filter for the process that runs with these options."""
        folder = options.folder
        base = folder / "base"
        environment = options.python.parent.parent
        known_folders = {
            options.home: "<comfyui>",
            **{base / name: f"<{name}>" for name in ("input", "output", "temp", "user", "scratch")},
            **{path: f"<custom_nodes>/{path.name}" for path in options.custom_nodes},
            base / "custom_nodes": "<custom_nodes>",
            base / "models": "<models>",
            options.models: "<models>",
            folder: "<folder>",
            environment: "<python>",
            # The standard library of a virtual environment is in the folder of its base
            # interpreter.
            _resolve_path(options.python).parent.parent: "<python>",
            Path(moyin.__file__).parent: "<moyin>",
        }
        return cls(known_folders)

    def hide_known(self, text: str) -> str:
        """Replace the known folders in a text."""
        return self._known.sub(lambda match: self._names[match[0]], text) if "/" in text else text

    def hide(self, text: str) -> str:
        """Replace all absolute paths in a text."""
        if "/" not in text:
            return text
        text = self._quoted.sub(rf"\g<quote>{PLACEHOLDER}\g<quote>", self.hide_known(text))
        return self._other.sub(PLACEHOLDER, text)

    def hide_known_in_body(self, body: bytes) -> bytes:
        return _hide_in_bytes(body, self.hide_known)

    def hide_in_body(self, body: bytes) -> bytes:
        return _hide_in_bytes(body, self.hide)

    def hide_in_json(self, value: Any) -> Any:
        """Replace all absolute paths in the keys and strings of a JSON value."""
        return _map_strings(value, self.hide)

    def hide_in_event(self, message: EventMessage) -> EventMessage:
        """Replace the paths in an event: all paths in an error, known folders in other events."""
        if message.type in _WITHOUT_PATHS:
            return message
        hide = self.hide if message.type == _ERROR_EVENT else self.hide_known
        return message.model_copy(update={"data": _map_strings(message.data, hide)})

    def hide_in_frame(self, frame: bytes) -> bytes:
        """Replace the known folders in a binary frame that contains text."""
        text = read_frame_text(frame)
        return frame if text is None else replace_frame_text(frame, self.hide_known(text))

    def hide_in_state(self, state: Any) -> Any:
        """Replace all paths in the error messages of ``state``, the JSON of a `PromptState`."""
        messages = _find_error_messages(state)
        for index, message in enumerate(messages):
            if isinstance(message, list) and len(message) == 2 and message[0] == _ERROR_EVENT:
                messages[index] = [_ERROR_EVENT, self.hide_in_json(message[1])]
        return state


def _hide_in_bytes(body: bytes, hide: Callable[[str], str]) -> bytes:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return body  # the caller's JSON parser reports the error
    return hide(text).encode()


def _find_error_messages(state: Any) -> list[Any]:
    value = state
    for name in ("entry", "status", "messages"):
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, list) else []


def _map_strings(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {_map_strings(key, hide): _map_strings(item, hide) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, hide) for item in value]
    return value


def _list_root_names() -> Iterable[str]:
    try:
        return [path.name for path in Path("/").iterdir()]
    except OSError:
        return []  # if the root is not readable, only the usual names are known


def _resolve_path(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()  # the path is a loop of links


def _escape_path(path: str) -> str:
    return json.dumps(path)[1:-1]
