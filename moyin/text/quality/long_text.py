"""Finds what a request asks of a long text that it contains, such as a report.

The text's own words show its topic, not the task. A question about what was said in a debate on a
tax needs no tax adviser; it asks for finding or summarising.
"""

from __future__ import annotations

from collections.abc import Callable

from moyin.text.quality.words import KIND_CUES, QUESTION_WORDS

__all__ = ["find_request", "reading_kind"]


def _word_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MAX_REQUEST_LENGTH = 600  # letters at each end of a long text that are searched for the request
# Kinds that work on a given text.
_TEXT_KINDS = frozenset({"extraction", "summary", "translation"})
_GENERAL_KINDS = frozenset({"knowledge", "chat", "reasoning"})
_QUANTITY_WORDS = (["many"], ["much"])  # after "how"
# A question that starts with one of these asks for something that can be located in the text.
_LOOKUP_WORDS = _word_set(
    "who whom whose when where which wer wann wo welche qui quand où quién cuándo dónde"
)
# After a question word, these show a question about what was said or done in the text.
_PAST_WORDS = _word_set(
    "did didn was wasn were weren had said happened decided discussed war waren wurde wurden "
    "hat haben hatte sagte étaient était dit fue eran dijo"
)
# These do so if the question is not about the user.
_REPORT_WORDS = _word_set(
    "text document article passage transcript meeting report paper chapter story author "
    "speaker thread log according mentioned say says think thinks want wants propose proposes "
    "suggest suggests recommend recommends describe describes argue argues claim claims "
    "explain explains laut dokument artikel protokoll bericht autor sagt meint texte rapport "
    "auteur selon texto informe según"
)
_PERSONAL_WORDS = _word_set(
    "i we you me us my our your should must ich wir mir uns mein unser soll sollen je nous notre mi"
)


def find_request(text: str, words_of: Callable[[str], list[str]]) -> tuple[str, list[str]]:
    """Return the short paragraph that asks something of a long text, and its words.

    It is the last paragraph, else the first. Both values are empty if neither asks anything.
    """
    _, separator, last = text[-_MAX_REQUEST_LENGTH:].rstrip().rpartition("\n\n")
    if separator and _is_request(last, words := words_of(last)):
        return last, words
    first, separator, _ = text[:_MAX_REQUEST_LENGTH].lstrip().partition("\n\n")
    if separator and _is_request(first, words := words_of(first)):
        return first, words
    return "", []


def reading_kind(request_words: list[str], kind: str) -> str:
    """Return `extraction` or `summary` if the request only asks to read the text, else "".

    Questions about what was said or done in the text ask for that, whatever its topic. So do
    questions that concern neither the user's own affairs nor a subject of its own.

    Args:
        request_words: words of the request.
        kind: kind that its words alone show.
    """
    if kind in ("summary", "extraction"):
        return kind
    if request_words[0] not in QUESTION_WORDS and request_words[0] not in _REPORT_WORDS:
        return ""
    is_about_others = _PERSONAL_WORDS.isdisjoint(request_words)
    is_reported = not _PAST_WORDS.isdisjoint(request_words[1:6]) or (
        is_about_others and not _REPORT_WORDS.isdisjoint(request_words)
    )
    if not is_reported and not (is_about_others and kind in _GENERAL_KINDS):
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
