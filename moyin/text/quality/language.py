"""The language of a request: by script first, by function words among the Latin ones."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Set

from moyin.text.quality.words import FUNCTION_WORDS

__all__ = ["FLOORS", "language_of"]

# Difficulty below which nothing in this language is: it must be mastered before anything can be
# said in it. Tests of small models (MMMLU, Belebele) fall from well to chance in about this order.
# Weights are stored under numbers that follow it: it stays, and what is new comes last.
FLOORS: dict[str, float] = {
    "en": -9.0,
    **dict.fromkeys(("de", "fr", "es", "it", "pt", "nl"), -1.0),
    **dict.fromkeys(("ru", "pl", "tr", "sv", "zh"), -0.5),
    **dict.fromkeys(("ja", "ko"), 0.0),
    **dict.fromkeys(("ar", "he", "hi", "th", "el"), 0.3),
    "other": 0.3,
}

# Unicode blocks by their first and last letter. Kana comes before Han: Japanese uses both.
_SCRIPTS = (
    ("ja", "\u3040", "\u30ff"),
    ("ko", "\uac00", "\ud7af"),
    ("zh", "\u4e00", "\u9fff"),
    ("ru", "\u0400", "\u052f"),
    ("el", "\u0370", "\u03ff"),
    ("he", "\u0590", "\u05ff"),
    ("ar", "\u0600", "\u06ff"),
    ("hi", "\u0900", "\u097f"),
    ("th", "\u0e00", "\u0e7f"),
)
_NAMES = tuple(name for name, _, _ in _SCRIPTS)
_BY_FIRST = sorted(_SCRIPTS, key=lambda script: script[1])
_FIRSTS = [first for _, first, _ in _BY_FIRST]
# Letters that are looked at; a text does not change its script for long.
_SAMPLE = 80
# A foreign word or two in an English text do not change its language.
_SHARE_OF_SCRIPT = 0.2
_KNOWN = FUNCTION_WORDS.keys()


def language_of(text: str, words: Set[str]) -> str:
    """Return the language of ``text``, one of `FLOORS`.

    Args:
        words: the distinct words of ``text`` in lower case.
    """
    if not text.isascii() and (script := _script_of(text[:_SAMPLE])):
        return script
    # English wins ties, and where nothing tells, as in "Merge sort in Go".
    votes = {"en": 0.5}
    for word in words & _KNOWN:
        language = FUNCTION_WORDS[word]
        votes[language] = votes.get(language, 0.0) + 1.0
    # Others' ties go by name, since sets have another order in every process.
    return max(votes.items(), key=lambda vote: (vote[1], vote[0]))[0]


def _script_of(sample: str) -> str:
    foreign = [letter for letter in sample if letter > "\u036f" and letter.isalpha()]
    if len(foreign) < _SHARE_OF_SCRIPT * len(sample):
        return ""
    counts = dict.fromkeys(_NAMES, 0)
    for letter in foreign:
        name, _, last = _BY_FIRST[bisect_right(_FIRSTS, letter) - 1]
        if letter <= last:
            counts[name] += 1
    if counts["ja"] and counts["ja"] * 8 >= counts["zh"]:
        return "ja"
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else "other"
