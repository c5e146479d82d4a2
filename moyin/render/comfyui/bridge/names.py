"""Which inputs of a node name files, and which values may stand there. Pure; standard library only.

The gateway asks before it accepts a graph, and the bridge asks again inside ComfyUI's process, where
links between nodes and nodes that other nodes expand into have become values. A rule is made of how
ComfyUI describes an input (``/object_info``, ``INPUT_TYPES``):

* ``FILE`` loads a file. It takes the names that we gave to the caller's files, and nothing else.
* ``FOLDER`` loads what lies in a folder of the worker's. It takes nothing: no folder is a caller's.
* ``PREFIX`` says where a node writes, below the folder of its own prompt.
* ``CHOICE`` is one of a list, such as a model.
* ``WIDGET`` is an object of the frontend's with names of files in it; other words in it are free.
* ``LINE`` is any other text: a path that leads out of ComfyUI's folders is refused.
* ``DATA`` is what nodes hand to each other; a value in its place is looked at like a ``LINE``.
* ``TEXT`` is prose and passes unseen.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

__all__ = [
    "CHOICE",
    "DATA",
    "FILE",
    "FOLDER",
    "INPUT_FOLDER",
    "LINE",
    "PREFIX",
    "TEXT",
    "WIDGET",
    "Refusal",
    "Rule",
    "escapes",
    "is_link",
    "may_be_linked",
    "may_hold",
    "refusals",
    "rule_of",
    "rules_of",
]

FILE, FOLDER, WIDGET, PREFIX = "file", "folder", "widget", "prefix"
CHOICE, LINE, DATA, TEXT = "choice", "line", "data", "text"
# The folder of input files that came with prompts, which only we name.
INPUT_FOLDER = "moyin"
# Stock inputs that load files and are not described as such.
_KNOWN = {
    ("LoadLatent", "latent"): FILE,
    ("LoadImageDataSetFromFolder", "folder"): FOLDER,
    ("LoadImageTextDataSetFromFolder", "folder"): FOLDER,
    ("LoadTrainingDataset", "folder_name"): FOLDER,
}
# Types of widgets whose values are names of files that the frontend has uploaded.
_WIDGETS = frozenset({"WEBCAM", "LOAD_3D", "LOAD_3D_ANIMATION", "AUDIO_RECORD"})
_NUMBERS = frozenset({"INT", "FLOAT", "BOOLEAN"})
_PLAIN = frozenset({"STRING", "INT", "FLOAT", "BOOLEAN"})
_FILES = frozenset(
    {"file", "files", "filename", "filenames", "filepath", "filepaths", "path", "paths"}
)
_FOLDERS = frozenset({"folder", "folders", "directory", "directories", "dir", "dirs"})
# What such words say nothing of a file's place with: ``file_format``, ``path_filter``.
_ASIDE = frozenset(
    {
        "count", "delimiter", "digits", "ext", "extension", "extensions", "filter", "format", "index",
        "mode", "number", "padding", "pattern", "size", "suffix", "type",
    }
)  # fmt: skip
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# Values by which widgets say that nothing is chosen.
_NOTHING = frozenset({"", "none"})
# A word of a widget's that is no file's name: files have a suffix, or lie in a folder.
_PLAIN_WORD = re.compile(r"[^./\\[\]:~%]*")
_SLASHES = str.maketrans({"\\": "/", "\u2044": "/", "\u2215": "/", "\u29f8": "/", "\u29f5": "/"})
_ANNOTATED = re.compile(r"\[\s*(input|output|temp)\s*\]\s*$", re.IGNORECASE)
_ELSEWHERE = re.compile(r"/|[a-z]:(/|$)|~[^/]*(/|$)|file:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)


class Rule(NamedTuple):
    """What an input takes; ``options`` are the choices that its pool has."""

    kind: str
    options: Collection[str] = frozenset()


class Refusal(NamedTuple):
    """An input whose value may not stand there, by node id, class and input."""

    node: str
    class_type: str
    input: str
    kind: str


def rules_of(class_type: str, node: Mapping[str, Any]) -> dict[str, Rule]:
    """The rules of a node's inputs by name, out of its ``/object_info``; numbers have none."""
    found = {}
    writes = bool(node.get("output_node"))
    outputs = [kind for kind in node.get("output") or () if isinstance(kind, str)]
    speaks = bool(outputs) and set(outputs) <= _PLAIN
    for inputs in (node.get("input") or {}).values():
        for name, spec in inputs.items() if isinstance(inputs, Mapping) else ():
            if isinstance(spec, (list, tuple)) and spec:
                rule = _rule(class_type, name, spec, writes, speaks)
                if rule is not None:
                    found[name] = rule
    return found


def refusals(
    graph: Mapping[str, Any],
    rules: Callable[[str], Mapping[str, Rule]],
    is_own: Callable[[str], bool],
) -> Iterator[Refusal]:
    """What in ``graph`` names a file that is not the caller's, or may do so once it is executed.

    Args:
        rules: of a class's inputs; none of a class that nobody knows.
        is_own: whether a text is the name that we gave to a file of the caller's.
    """
    for node_id, node in graph.items():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        class_type = str(node.get("class_type")) if isinstance(node, Mapping) else ""
        known = rules(class_type)
        if not isinstance(inputs, Mapping):
            continue
        for name, value in inputs.items():
            rule = rule_of(known, name)
            allowed = may_be_linked(rule) if is_link(value) else may_hold(rule, value, is_own)
            if not allowed:
                yield Refusal(node_id, class_type, name, rule.kind)


def rule_of(rules: Mapping[str, Rule], name: str) -> Rule:
    """The rule of an input. Nodes with any number of inputs describe what their names begin with."""
    return rules.get(name) or rules.get(name.partition(".")[0]) or Rule(LINE)


def is_link(value: Any) -> bool:
    """Whether a graph's value stands for another node's output."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], (int, float))
    )


def may_be_linked(rule: Rule) -> bool:
    """Whether another node's output may stand there: of a file's name, nobody knows it in time."""
    return rule.kind not in (FILE, FOLDER, WIDGET)


def may_hold(rule: Rule, value: Any, is_own: Callable[[str], bool]) -> bool:
    """Whether a value, or every text within it, may stand in an input."""
    return rule.kind == TEXT or all(_may(rule, text, is_own) for text in _strings(value))


def escapes(text: str) -> bool:
    """Whether a text, read as a path, leads out of the folder in which it is looked up.

    That is an absolute path, one with ``..``, a drive, a home folder, a URL, or a name with one of
    ComfyUI's folders behind it; however it is encoded.
    """
    for form in _forms(text):
        if _ELSEWHERE.match(form) or _ANNOTATED.search(form):
            return True
        if any(part.strip(" ") == ".." for part in form.split("/")):
            return True
        if any(ord(letter) < 32 and letter not in "\t\r\n" for letter in form):
            return True
    return False


def _rule(
    class_type: str, name: str, spec: Sequence[Any], writes: bool, speaks: bool
) -> Rule | None:
    kind = spec[0]
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    if (class_type, name) in _KNOWN:
        return Rule(_KNOWN[class_type, name])
    if any(word.endswith("_upload") and options[word] for word in options):
        return Rule(FILE)
    choices = kind if isinstance(kind, (list, tuple)) else options.get("options")
    if kind == "COMBO" or isinstance(kind, (list, tuple)):
        texts = (item for item in choices or () if isinstance(item, str))
        return Rule(CHOICE, frozenset(text for text in texts if not _is_ours(text)))
    # Some types say that they are equal to every other.
    kind = str.__str__(kind) if isinstance(kind, str) else ""
    if kind in _WIDGETS:
        return Rule(WIDGET)
    if kind in _NUMBERS:
        return None
    if kind != "STRING":
        return Rule(DATA)
    named = _named(name, writes)
    if named is not None:
        return Rule(named)
    if speaks or options.get("multiline") or options.get("dynamicPrompts"):
        return Rule(TEXT)
    return Rule(LINE)


def _named(name: str, writes: bool) -> str | None:
    """The kind of a text of which its name says that it is a path."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _ASIDE:
        return None
    if words[-1] == "prefix":
        return PREFIX if writes or _FILES & set(words) else None
    if not (_FILES | _FOLDERS) & set(words):
        return None
    if writes:
        return PREFIX
    return FOLDER if _FOLDERS & set(words) else FILE


def _may(rule: Rule, text: str, is_own: Callable[[str], bool]) -> bool:
    kind = rule.kind
    if is_own(text) and kind != PREFIX:
        return True
    if kind in (FILE, FOLDER):
        return text in _NOTHING
    if kind == WIDGET:
        plain = _PLAIN_WORD.fullmatch(text) is not None
        return plain and not escapes(text) and not _is_ours(text)
    if kind == CHOICE and text in rule.options:
        return True
    if kind in (LINE, DATA) and _is_no_path(text):
        return True
    return not escapes(text) and (kind == PREFIX or not _is_ours(text))


def _is_no_path(text: str) -> bool:
    """Whether a value of a plain input is a sign, a sentence or an address."""
    if _ANNOTATED.search(text):
        return False
    sentence = any(letter.isspace() for letter in text.strip())
    return text == "/" or sentence or _ADDRESS.match(text) is not None


def _is_ours(text: str) -> bool:
    """Whether it is the folder of input files, or a name within it."""
    return any(_first(form) == INPUT_FOLDER for form in _forms(text))


def _first(path: str) -> str:
    parts = (part.strip().casefold() for part in path.split("/"))
    return next((part for part in parts if part not in ("", ".")), "")


def _forms(text: str) -> Iterator[str]:
    """The text in the ways in which a node, or what it calls, may read it."""
    for _ in range(4):
        plain = text if text.isascii() else _plain(text)
        yield plain.translate(_SLASHES).strip()
        decoded = unquote(text)
        if decoded == text:
            return
        text = decoded


def _plain(text: str) -> str:
    """The text with look-alikes of ASCII as that, and without what nobody sees."""
    letters = unicodedata.normalize("NFKC", text)
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Cf")


def _strings(value: Any) -> Iterator[str]:
    """Every text within a value, however deep it lies."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            left.extend(item.values())
        elif isinstance(item, (list, tuple)):
            left.extend(item)
