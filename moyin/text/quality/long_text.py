"""Finds the actual request next to a long text, such as a question about a report.

The words of the text show its topic, but not the task: a question about a debate on taxes is not a
question of tax law, because it asks for extraction or a summary.
"""

from __future__ import annotations

from collections.abc import Callable

from moyin.text.quality.words import KIND_CUES, QUESTION_WORDS


def _split_to_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MAX_REQUEST_LENGTH = 600  # letters at each end of a long text that may contain the request
# The kinds of request that process a given text.
_TEXT_KINDS = frozenset({"extraction", "summary", "translation"})
_GENERAL_KINDS = frozenset({"knowledge", "chat", "reasoning"})
_QUANTITY_WORDS = (["many"], ["much"])  # after "how"
# Questions that start with one of these words ask for a single place in the text.
_LOOKUP_WORDS = _split_to_set(
    "who whom whose when where which wer wann wo welche qui quand où quién cuándo dónde"
)
# After a question word, these words show a question about what the text reports.
_PAST_WORDS = _split_to_set(
    "did didn was wasn were weren had said happened decided discussed war waren wurde wurden "
    "hat haben hatte sagte étaient était dit fue eran dijo"
)
# These words also show such a question, unless it has one of _PERSONAL_WORDS, too.
_REPORT_WORDS = _split_to_set(
    "text document article passage transcript meeting report paper chapter story author "
    "speaker thread log according mentioned say says think thinks want wants propose proposes "
    "suggest suggests recommend recommends describe describes argue argues claim claims "
    "explain explains laut dokument artikel protokoll bericht autor sagt meint texte rapport "
    "auteur selon texto informe según"
)
_PERSONAL_WORDS = _split_to_set(
    "i we you me us my our your should must ich wir mir uns mein unser soll sollen je nous notre mi"
)


def find_request(text: str, split_words: Callable[[str], list[str]]) -> tuple[str, list[str]]:
    """Return the paragraph of a long text that is a request, and its words.

    The last paragraph is examined first, then the first one, and no other. If neither is a request,
    an empty text and no words are returned.

    Args:
        split_words: returns the words of a text in lower case.
    """
    _, separator, last_paragraph = text[-_MAX_REQUEST_LENGTH:].rstrip().rpartition("\n\n")
    if separator and _is_request(last_paragraph, words := split_words(last_paragraph)):
        return last_paragraph, words
    first_paragraph, separator, _ = text[:_MAX_REQUEST_LENGTH].lstrip().partition("\n\n")
    if separator and _is_request(first_paragraph, words := split_words(first_paragraph)):
        return first_paragraph, words
    return "", []


def classify_reading(request_words: list[str], kind: str) -> str:
    """Return the kind "extraction" or "summary" if the request asks about the long text, else "".

    Such requests ask what the text reports, or ask a general question that does not concern the
    user: the text probably contains the answer.

    Args:
        request_words: the words of the request, without the long text.
        kind: the kind of request according to these words alone.
    """
    if kind in ("summary", "extraction"):
        return kind
    if request_words[0] not in QUESTION_WORDS and request_words[0] not in _REPORT_WORDS:
        return ""
    is_impersonal = _PERSONAL_WORDS.isdisjoint(request_words)
    asks_about_report = not _PAST_WORDS.isdisjoint(request_words[1:6]) or (
        is_impersonal and not _REPORT_WORDS.isdisjoint(request_words)
    )
    if not asks_about_report and not (is_impersonal and kind in _GENERAL_KINDS):
        return ""
    return (
        "extraction"
        if request_words[0] in _LOOKUP_WORDS or request_words[1:2] in _QUANTITY_WORDS
        else "summary"
    )


def _is_request(paragraph: str, words: list[str]) -> bool:
    return bool(words) and (
        paragraph.rstrip().endswith(("?", "\uff1f"))
        or not QUESTION_WORDS.isdisjoint(words[:2])
        or any(KIND_CUES.get(word) in _TEXT_KINDS for word in words)
    )
