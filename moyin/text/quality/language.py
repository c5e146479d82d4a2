"""Detects the language of a request by its script, and by function words in Latin script."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Set

from moyin.text.quality.words import FUNCTION_WORDS

__all__ = ["MIN_DIFFICULTY", "language_of"]

# The lowest difficulty of a request in each language, because the model must master the language first.
# Scores of small models (MMMLU, Belebele) fall from good to chance in about this order. Stored weights
# are numbered by this order, so it must not change; add new languages at the end.
MIN_DIFFICULTY: dict[str, float] = {
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
_SCRIPT_LANGUAGES = tuple(name for name, _, _ in _SCRIPTS)
_SCRIPTS_BY_START = sorted(_SCRIPTS, key=lambda script: script[1])
_SCRIPT_STARTS = [first for _, first, _ in _SCRIPTS_BY_START]
# Letters that are inspected; a text rarely changes its script.
_SAMPLE_LENGTH = 80
# A foreign word or two in an English text do not change its language.
_MIN_SCRIPT_SHARE = 0.2
_KNOWN_WORDS = FUNCTION_WORDS.keys()


def language_of(text: str, words: Set[str]) -> str:
    """Return the language of ``text``, one of `MIN_DIFFICULTY`.

    Args:
        words: the distinct words of ``text`` in lower case.
    """
    if not text.isascii() and (script := _script_of(text[:_SAMPLE_LENGTH])):
        return script
    # English wins ties and texts without function words, such as "Merge sort in Go".
    votes = {"en": 0.5}
    for word in words & _KNOWN_WORDS:
        language = FUNCTION_WORDS[word]
        votes[language] = votes.get(language, 0.0) + 1.0
    # Other ties are resolved by name, because the order of sets differs between processes.
    return max(votes.items(), key=lambda vote: (vote[1], vote[0]))[0]


def _script_of(sample: str) -> str:
    foreign = [letter for letter in sample if letter > "\u036f" and letter.isalpha()]
    if len(foreign) < _MIN_SCRIPT_SHARE * len(sample):
        return ""
    counts = dict.fromkeys(_SCRIPT_LANGUAGES, 0)
    for letter in foreign:
        name, _, last = _SCRIPTS_BY_START[bisect_right(_SCRIPT_STARTS, letter) - 1]
        if letter <= last:
            counts[name] += 1
    if counts["ja"] and counts["ja"] * 8 >= counts["zh"]:
        return "ja"
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else "other"
