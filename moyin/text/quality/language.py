"""Detects the language of a request by its script, or by function words in Latin script."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Set

from moyin.text.quality.words import FUNCTION_WORDS

# The lowest difficulty of a request in each language, in logits, because a model must first master
# the language. Scores of small models (MMMLU, Belebele) fall from good to chance in about this
# order. Stored weights are numbered by it, so it must not change; add new languages at the end.
MIN_DIFFICULTY: dict[str, float] = {
    "en": -9.0,
    **dict.fromkeys(("de", "fr", "es", "it", "pt", "nl"), -1.0),
    **dict.fromkeys(("ru", "pl", "tr", "sv", "zh"), -0.5),
    **dict.fromkeys(("ja", "ko"), 0.0),
    **dict.fromkeys(("ar", "he", "hi", "th", "el"), 0.3),
    "other": 0.3,
}

# The first and the last letter of the Unicode block of each language's script.
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
_SAMPLE_LENGTH = 80  # number of letters inspected; a text rarely changes its script
_MIN_SCRIPT_SHARE = 0.2  # with a smaller share, a text has only single words of another language
_KNOWN_WORDS = FUNCTION_WORDS.keys()


def detect_language(text: str, words: Set[str]) -> str:
    """Return the code of the text's language, such as ``en``.

    Args:
        words: the distinct words of ``text`` in lower case.
    """
    if not text.isascii() and (script_language := _detect_script(text[:_SAMPLE_LENGTH])):
        return script_language
    # English wins ties and texts without function words, such as "Merge sort in Go".
    votes = {"en": 0.5}
    for word in words & _KNOWN_WORDS:
        language = FUNCTION_WORDS[word]
        votes[language] = votes.get(language, 0.0) + 1.0
    # Other ties are resolved by name, because all processes must agree and set order differs.
    return max(votes.items(), key=lambda vote: (vote[1], vote[0]))[0]


def _detect_script(sample: str) -> str:
    non_latin_letters = [letter for letter in sample if letter > "\u036f" and letter.isalpha()]
    if len(non_latin_letters) < _MIN_SCRIPT_SHARE * len(sample):
        return ""
    counts = dict.fromkeys(_SCRIPT_LANGUAGES, 0)
    for letter in non_latin_letters:
        language, _, last_letter = _SCRIPTS_BY_START[bisect_right(_SCRIPT_STARTS, letter) - 1]
        if letter <= last_letter:
            counts[language] += 1
    if counts["ja"] and counts["ja"] * 8 >= counts["zh"]:
        return "ja"
    most_frequent_language = max(counts, key=counts.__getitem__)
    return most_frequent_language if counts[most_frequent_language] else "other"
