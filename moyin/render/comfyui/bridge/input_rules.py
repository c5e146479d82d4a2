"""Decides which inputs of a node name files, and which values these inputs may have.

The gateway checks a graph when it is submitted. The bridge checks the graph again inside ComfyUI's
process, when links have become values and nodes have been expanded; so this module imports only the
standard library. The kind of a rule follows from ComfyUI's description of the input:

* ``FILE``: The node loads this file. Only Moyin's names of the caller's own files are allowed.
* ``FOLDER``: The node loads the files of this folder. No value is allowed.
* ``PREFIX``: The node writes a file with this name below the folder of its prompt.
* ``CHOICE``: The value is one of a list, such as a model.
* ``WIDGET``: The value is an object of the frontend that contains file names and plain words.
* ``LINE``: The value is any other text. A path that leads out of ComfyUI's folders is refused.
* ``DATA``: The value comes from another node. A literal value is checked like a ``LINE``.
* ``TEXT``: The value is prose, which is not checked.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

FILE, FOLDER, WIDGET, PREFIX = "file", "folder", "widget", "prefix"
CHOICE, LINE, DATA, TEXT = "choice", "line", "data", "text"
# The subfolder of ComfyUI's input folder with the files that Moyin has named.
INPUT_FOLDER = "moyin"
# Inputs of ComfyUI's own nodes that load files although their description does not say so.
_BUILT_IN_INPUTS = {
    ("LoadLatent", "latent"): FILE,
    ("LoadImageDataSetFromFolder", "folder"): FOLDER,
    ("LoadImageTextDataSetFromFolder", "folder"): FOLDER,
    ("LoadTrainingDataset", "folder_name"): FOLDER,
}
# The types of widgets whose values name files that the frontend has uploaded.
_WIDGET_TYPES = frozenset({"WEBCAM", "LOAD_3D", "LOAD_3D_ANIMATION", "AUDIO_RECORD"})
_NUMBER_TYPES = frozenset({"INT", "FLOAT", "BOOLEAN"})
_PLAIN_TYPES = frozenset({"STRING", "INT", "FLOAT", "BOOLEAN"})
_FILE_WORDS = frozenset(
    {"file", "files", "filename", "filenames", "filepath", "filepaths", "path", "paths"}
)
_FOLDER_WORDS = frozenset({"folder", "folders", "directory", "directories", "dir", "dirs"})
# The last words of inputs that have no path, such as ``file_format`` and ``path_filter``.
_ATTRIBUTE_WORDS = frozenset(
    {
        "count", "delimiter", "digits", "ext", "extension", "extensions", "filter", "format", "index",
        "mode", "number", "padding", "pattern", "size", "suffix", "type",
    }
)  # fmt: skip
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# The values of a file input in which no file is chosen.
_EMPTY_CHOICES = frozenset({"", "none"})
# A text without dots and slashes, which the names of files have.
_PLAIN_WORD = re.compile(r"[^./\\[\]:~%]*")
_SLASHES = str.maketrans({"\\": "/", "\u2044": "/", "\u2215": "/", "\u29f8": "/", "\u29f5": "/"})
_ANNOTATED = re.compile(r"\[\s*(input|output|temp)\s*\]\s*$", re.IGNORECASE)
_OUTSIDE = re.compile(r"/|[a-z]:(/|$)|~[^/]*(/|$)|file:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WEB_ADDRESS = re.compile(r"https?://", re.IGNORECASE)


class Rule(NamedTuple):
    """The kind of an input, with the ``options`` that the pool offers if it is a ``CHOICE``."""

    kind: str
    options: Collection[str] = frozenset()


class Refusal(NamedTuple):
    """A refused input of a node, with the kind of the rule that its value breaks."""

    node: str
    class_type: str
    input: str
    kind: str


def derive_rules(class_type: str, node: Mapping[str, Any]) -> dict[str, Rule]:
    """Derive the rule of each input from the node's ``/object_info``; numbers have no rule."""
    rules = {}
    writes_files = bool(node.get("output_node"))
    output_types = [kind for kind in node.get("output") or () if isinstance(kind, str)]
    # A node whose outputs are all plain values does not open files that its texts may name.
    is_textual = bool(output_types) and set(output_types) <= _PLAIN_TYPES
    for inputs in (node.get("input") or {}).values():
        for name, spec in inputs.items() if isinstance(inputs, Mapping) else ():
            if isinstance(spec, (list, tuple)) and spec:
                rule = _derive_rule(class_type, name, spec, writes_files, is_textual)
                if rule is not None:
                    rules[name] = rule
    return rules


def find_refusals(
    graph: Mapping[str, Any],
    get_rules: Callable[[str], Mapping[str, Rule]],
    is_own_file: Callable[[str], bool],
) -> Iterator[Refusal]:
    """Yield the inputs that may lead to a file that does not belong to the caller.

    The input's value names such a file, or is a link whose value is not known yet.

    Args:
        get_rules: returns the rules of a node class's inputs, which are empty for an unknown class.
        is_own_file: returns whether a text is the name of a file of the caller.
    """
    for node_id, node in graph.items():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        class_type = str(node.get("class_type")) if isinstance(node, Mapping) else ""
        input_rules = get_rules(class_type)
        if not isinstance(inputs, Mapping):
            continue
        for name, value in inputs.items():
            rule = find_rule(input_rules, name)
            if not (
                allows_link(rule) if is_link(value) else allows_value(rule, value, is_own_file)
            ):
                yield Refusal(node_id, class_type, name, rule.kind)


def find_rule(rules: Mapping[str, Rule], name: str) -> Rule:
    """Return the rule of an input, or a rule of the kind ``LINE`` if the input has none.

    An input such as ``a.b`` without a rule of its own has the rule of ``a``.
    """
    return rules.get(name) or rules.get(name.partition(".")[0]) or Rule(LINE)


def is_link(value: Any) -> bool:
    """Return whether a value in a graph is a link to the output of another node."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], (int, float))
    )


def allows_link(rule: Rule) -> bool:
    """Return whether an input with this rule may be a link to another node's output."""
    return rule.kind not in (FILE, FOLDER, WIDGET)


def allows_value(rule: Rule, value: Any, is_own_file: Callable[[str], bool]) -> bool:
    """Return whether an input with this rule may have this value; all texts in it are checked.

    Args:
        is_own_file: returns whether a text is the name of a file of the caller.
    """
    return rule.kind == TEXT or all(
        _allows_text(rule, text, is_own_file) for text in _find_strings(value)
    )


def leads_outside(text: str) -> bool:
    """Return whether a text, decoded in any usual way, is a path that leads out of its folder.

    Such a path is absolute, contains ``..``, begins with a drive, a home folder or a URL scheme, or
    ends with a folder's name in brackets, such as ``[output]``: ComfyUI then reads that folder.
    A text with control characters counts as such a path, too.
    """
    for form in _decode_forms(text):
        if _OUTSIDE.match(form) or _ANNOTATED.search(form):
            return True
        if any(segment.strip(" ") == ".." for segment in form.split("/")):
            return True
        if any(ord(letter) < 32 and letter not in "\t\r\n" for letter in form):
            return True
    return False


def _derive_rule(
    class_type: str, name: str, spec: Sequence[Any], writes_files: bool, is_textual: bool
) -> Rule | None:
    kind = spec[0]
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    if (class_type, name) in _BUILT_IN_INPUTS:
        return Rule(_BUILT_IN_INPUTS[class_type, name])
    if any(option_name.endswith("_upload") and options[option_name] for option_name in options):
        return Rule(FILE)
    choices = kind if isinstance(kind, (list, tuple)) else options.get("options")
    if kind == "COMBO" or isinstance(kind, (list, tuple)):
        texts = (item for item in choices or () if isinstance(item, str))
        return Rule(CHOICE, frozenset(text for text in texts if not _leads_to_input_folder(text)))
    # Some types override `==` to equal every other type.
    kind = str.__str__(kind) if isinstance(kind, str) else ""
    if kind in _WIDGET_TYPES:
        return Rule(WIDGET)
    if kind in _NUMBER_TYPES:
        return None
    if kind != "STRING":
        return Rule(DATA)
    path_kind = _guess_path_kind(name, writes_files)
    if path_kind is not None:
        return Rule(path_kind)
    if is_textual or options.get("multiline") or options.get("dynamicPrompts"):
        return Rule(TEXT)
    return Rule(LINE)


def _guess_path_kind(name: str, writes_files: bool) -> str | None:
    """Return ``FILE``, ``FOLDER`` or ``PREFIX`` if the name of a text input suggests a path.

    Return None for other names.

    Args:
        writes_files: True if the node writes files.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _ATTRIBUTE_WORDS:
        return None
    if words[-1] == "prefix":
        return PREFIX if writes_files or _FILE_WORDS & set(words) else None
    if not (_FILE_WORDS | _FOLDER_WORDS) & set(words):
        return None
    if writes_files:
        return PREFIX
    return FOLDER if _FOLDER_WORDS & set(words) else FILE


def _allows_text(rule: Rule, text: str, is_own_file: Callable[[str], bool]) -> bool:
    kind = rule.kind
    if is_own_file(text) and kind != PREFIX:
        return True
    if kind in (FILE, FOLDER):
        return text in _EMPTY_CHOICES
    if kind == WIDGET:
        is_word = _PLAIN_WORD.fullmatch(text) is not None
        return is_word and not leads_outside(text) and not _leads_to_input_folder(text)
    if kind == CHOICE and text in rule.options:
        return True
    if kind in (LINE, DATA) and _is_prose(text):
        return True
    return not leads_outside(text) and (kind == PREFIX or not _leads_to_input_folder(text))


def _is_prose(text: str) -> bool:
    """Return whether a text is a single slash, a sentence or a web address rather than a path."""
    if _ANNOTATED.search(text):
        return False
    has_space = any(letter.isspace() for letter in text.strip())
    return text == "/" or has_space or _WEB_ADDRESS.match(text) is not None


def _leads_to_input_folder(text: str) -> bool:
    """Return whether a text is a path to or into the folder of input files."""
    return any(_get_first_folder(form) == INPUT_FOLDER for form in _decode_forms(text))


def _get_first_folder(path: str) -> str:
    segments = (segment.strip().casefold() for segment in path.split("/"))
    return next((segment for segment in segments if segment not in ("", ".")), "")


def _decode_forms(text: str) -> Iterator[str]:
    """Yield the text and its percent-decoded forms, which a node or a library may read instead."""
    for _ in range(4):
        ascii_text = text if text.isascii() else _to_ascii_forms(text)
        yield ascii_text.translate(_SLASHES).strip()
        decoded_text = unquote(text)
        if decoded_text == text:
            return
        text = decoded_text


def _to_ascii_forms(text: str) -> str:
    """Replace Unicode variants of ASCII characters, such as full-width letters.

    Invisible characters are removed.
    """
    letters = unicodedata.normalize("NFKC", text)
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Cf")


def _find_strings(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value, at any depth."""
    unvisited_values = [value]
    while unvisited_values:
        item = unvisited_values.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            unvisited_values.extend(item.values())
        elif isinstance(item, (list, tuple)):
            unvisited_values.extend(item)
