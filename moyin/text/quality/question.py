"""Describes a request before any model has answered it: its kind, language and difficulty.

`build_question` adds up the difficulty of the kind, the demands, the length and other properties of
the request. The sum is a rough estimate, and its spread states how rough.

A `Question` contains no text, only hashes of up to about a hundred words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from zlib import crc32

from moyin.text.quality.language import MIN_DIFFICULTY, detect_language
from moyin.text.quality.long_text import classify_reading, find_request
from moyin.text.quality.prior import KIND_DIFFICULTY, KIND_SPREAD
from moyin.text.quality.words import (
    AMBIGUOUS_PROGRAMMING_LANGUAGES,
    DEMAND_DIFFICULTY,
    FUNCTION_WORDS,
    KIND_CUES,
    KIND_SUBSTRINGS,
    PROGRAMMING_LANGUAGE_PREFIXES,
    QUESTION_WORDS,
)

# Stored weights are numbered by this order, so it must not change; add new kinds at the end.
KINDS: tuple[str, ...] = (
    "greeting", "extraction", "writing", "summary", "knowledge", "chat", "translation", "medicine",
    "law", "finance", "reasoning", "code", "mathematics",
)  # fmt: skip
LANGUAGES: tuple[str, ...] = tuple(MIN_DIFFICULTY)

FEATURE_COUNT = 8_192  # weights per tenant and model; shape and word features are smaller
SHAPE_FEATURES = 9  # number of shape features at the start of a question's features; words follow
FORMULA_FEATURE = 224  # the feature of a text without formulae; 225 is that of a text with formulae
FIRST_WORD_FEATURE = (
    512  # the first number of a word; the features of the shape have smaller numbers
)
# An embedder adds one feature per dimension of the meaning. Its number encodes dimension and value:
# `FIRST_MEANING_FEATURE + MEANING_STEPS * dimension + step`. The weight of a dimension has the
# number `FIRST_MEANING_WEIGHT + dimension`.
MEANING_DIMENSIONS, MEANING_STEPS, FIRST_MEANING_FEATURE, FIRST_MEANING_WEIGHT = (
    256,
    255,
    FEATURE_COUNT,
    226,
)
MEANING_SCALE = 256  # steps per unit; the values of a unit vector's dimensions are about 1/16
_MISSING_FEATURE = FIRST_WORD_FEATURE - 1  # stands for a feature that a stored question lacks
_MAX_STEMS = 80  # distinct words that are hashed, besides the first and last words
# Number of letters read at the beginning and end of a longer text, where requests usually are.
_HEAD_LENGTH, _TAIL_LENGTH = 1_600, 400
_MAX_CACHED_WORDS, _MAX_CACHED_LENGTH = 32_768, 32  # words in the cache, letters per word
_NO_REQUEST: tuple[str, list[str]] = ("", [])
_MIN_STORY_WORDS = 10  # words of the shortest riddle (a story and a question)
_SHORT_WORDS = 6  # a message with fewer words means little without the previous one

_WORD_PATTERN = re.compile(r"[\w+#]+")
# Maps ASCII letters to lower case, and all characters that _WORD_PATTERN does not match to spaces.
_ASCII_TABLE = bytes(
    byte if byte > 127 or chr(byte).isalnum() or chr(byte) in "_+#" else 32 for byte in range(256)
).lower()
_SPACELESS_LANGUAGES = frozenset({"ja", "zh", "th"})
# Parts of a text that show code. Separate searches are faster than one regular expression.
_CODE_MARKERS = (
    "```",
    "def ",
    "();",
    "{\n",
    ";\n",
    "=>",
    "</",
    "#include",
    "SELECT ",
    "O(n",
    "() ",
)
_ARITHMETIC_PATTERN = re.compile(r"\d\s*[-+*/\u00d7\u00f7^=<>]\s*[-(]?\d|\\frac|\\int|\$\d")
_MULTIPLE_CHOICE_PATTERN = re.compile(r"\n\(?[A-D][.)] ")
_LIST_ITEM_PATTERN = re.compile(r"(?:^|\n)\s*(?:\d+[.)]|[-*]) ")

# The following numbers are logits that add to the difficulty.
# Added per doubling of the tokens beyond _USUAL_TOKENS, because more text causes more errors. With
# each doubling from 4,096 to 32,768 tokens, RULER's score falls by 0.26 (Qwen3 235B), 0.31 (Qwen3
# 8B) and 0.37 (Llama 3.1 8B) logits.
_PER_TOKEN_DOUBLING = 0.3
_USUAL_TOKENS = 500
# A longer request usually asks for more. The slope is that of the public tables' development
# folds, where anything from 0.3 to 0.6 fits about as well.
_PER_WORD_DOUBLING = 0.4  # per doubling of the words, from _FEW_WORDS to _MANY_WORDS
_FEW_WORDS, _MANY_WORDS = 12, 200
# Most words of these requests are the text to process, so _PER_WORD_DOUBLING does not apply.
_MATERIAL_KINDS = frozenset({"extraction", "summary", "translation"})
_MAX_LENGTH_DIFFICULTY = 2.5
_PER_LIST_ITEM = 0.15  # per list item, which an answer can miss
_MAX_LIST_ITEMS = 8
_TOOLS_DIFFICULTY = 0.8  # the call must name a tool and fill its arguments
_SCHEMA_DIFFICULTY = 0.3  # constrained decoding ensures the form, but not fitting content
_PICTURES_DIFFICULTY = 0.5
_THINKING_DIFFICULTY = 0.6  # a client that enables thinking expects a hard task
_PER_TURN = 0.1  # per earlier turn, which the answer must consider
_MAX_COUNTED_TURNS = 8
_PLAIN_ARITHMETIC_DIFFICULTY = -2.4  # "what is 17 * 23" needs no reading
_UNCERTAIN_KIND_SPREAD = 0.4  # added to the spread, not the difficulty, if no word shows the kind

KIND_NUMBER = {kind: 16 + number for number, kind in enumerate(KINDS)}
_LANGUAGE_NUMBER = {language: 48 + number for number, language in enumerate(LANGUAGES)}
_CUE_WORDS, _DEMAND_WORDS = KIND_CUES.keys(), DEMAND_DIFFICULTY.keys()
_ALL_CUES = frozenset(
    _CUE_WORDS | _DEMAND_WORDS | FUNCTION_WORDS.keys() | AMBIGUOUS_PROGRAMMING_LANGUAGES
)
# The votes of specific terms count more than those of general words such as "list".
_VOTE_WEIGHT = {"law": 1.2, "medicine": 1.2, "greeting": 0.9, "finance": 1.1, "translation": 2.5}
# Words of a task count more than words of its topic, as in "summarize this contract".
_TASK_KINDS = frozenset({"summary", "extraction"})
_TASK_VOTE_FACTOR = 1.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """The properties of a request that predict the quality of its answer.

    Attributes:
        kind: the kind of request, one of `KINDS`.
        language: the language of the request, one of `LANGUAGES`.
        difficulty: the difficulty in logits, on the scale of `moyin.text.quality.abilities`.
        spread: the standard deviation of ``difficulty``.
        features: numbers that identify the learned weights for this request: first
            `SHAPE_FEATURES` numbers for its shape, such as its length, then one per hashed word.
            With an embedder, `MEANING_DIMENSIONS` numbers for the meaning follow.
    """

    kind: str
    language: str
    difficulty: float
    spread: float
    features: tuple[int, ...]


def build_question(
    turns: Sequence[tuple[str, str]],
    *,
    tools: bool,
    schema: bool,
    pictures: bool,
    thinking: bool,
    prompt_tokens: int,
    embed: Callable[[str], tuple[int, ...]] | None = None,
) -> Question:
    """Describe a request before any model has answered it.

    Args:
        turns: the role and the text of each of the last turns, the newest last.
        tools: True if the request has tools.
        schema: True if the answer must match a JSON schema.
        pictures: True if the request has pictures.
        thinking: True if the client enabled thinking.
        prompt_tokens: the tokens of the whole prompt, which may be longer than ``turns``.
        embed: returns the features of a text's meaning; None if only words are used.
    """
    text, turn_count, (request, request_words) = _extract_request(turns)
    lower_text = text.lower()
    words = _split_words(text, lower_text)
    distinct_words = dict.fromkeys(words)
    # The words of all lists are found once, because `&` with the keys of a dictionary, which the
    # functions for language, kind and demands use, takes eight times as long.
    cues = _ALL_CUES.intersection(words)
    digit_count = _count_digits(text)
    language = detect_language(text, cues)
    has_sums = digit_count > 0 and _ARITHMETIC_PATTERN.search(text) is not None
    demand_cues, kind, is_certain = cues, "", False
    is_exam = _MULTIPLE_CHOICE_PATTERN.search(request) is not None
    if request and not is_exam and not _looks_like_code(text, words, cues):
        # The words of a long text show its topic, so the request beside it shows the kind.
        demand_cues = _ALL_CUES.intersection(request_words)
        kind, is_certain = _classify_kind(
            request, request.lower(), request_words, demand_cues, language, False
        )
        reading_kind = classify_reading(request_words, kind)
        kind, is_certain = (
            reading_kind or kind,
            bool(reading_kind) or (is_certain and kind != "knowledge"),
        )
    if not is_certain:
        demand_cues = cues
        kind, is_certain = _classify_kind(text, lower_text, words, cues, language, has_sums)

    difficulty = KIND_DIFFICULTY[kind] + _compute_demand_difficulty(demand_cues)
    if has_sums and kind == "mathematics" and len(words) < 2 * _SHORT_WORDS:
        difficulty += _PLAIN_ARITHMETIC_DIFFICULTY
    if len(words) > _FEW_WORDS and kind not in _MATERIAL_KINDS:
        difficulty += _PER_WORD_DOUBLING * math.log2(min(len(words), _MANY_WORDS) / _FEW_WORDS)
    if prompt_tokens > _USUAL_TOKENS:
        difficulty += min(
            _PER_TOKEN_DOUBLING * math.log2(prompt_tokens / _USUAL_TOKENS), _MAX_LENGTH_DIFFICULTY
        )
    list_item_count = (
        len(_LIST_ITEM_PATTERN.findall(text)) if "\n" in text and len(text) < _HEAD_LENGTH else 0
    )
    difficulty += _PER_LIST_ITEM * min(list_item_count, _MAX_LIST_ITEMS) + _PER_TURN * min(
        turn_count - 1, _MAX_COUNTED_TURNS
    )
    # Booleans count as 0 or 1.
    difficulty += (
        _TOOLS_DIFFICULTY * tools
        + _SCHEMA_DIFFICULTY * schema
        + _PICTURES_DIFFICULTY * pictures
        + _THINKING_DIFFICULTY * thinking
    )
    difficulty = max(difficulty, MIN_DIFFICULTY[language])

    spread = KIND_SPREAD[kind] + (0.0 if is_certain else _UNCERTAIN_KIND_SPREAD)
    return Question(
        kind=kind,
        language=language,
        difficulty=difficulty,
        spread=spread,
        features=(
            *_compute_shape_features(
                text, len(words), digit_count, kind, language, list_item_count, tools or schema
            ),
            *_hash_words(text if language in _SPACELESS_LANGUAGES else "", words, distinct_words),
            *(() if embed is None else embed(text)),
        ),
    )


def restore_features(features: Iterable[int]) -> tuple[int, ...]:
    """Convert the features of a stored question to the layout of this version.

    Features of the shape, such as length and number of lines, have numbers below
    `FIRST_WORD_FEATURE`. Another version may have stored fewer or more of them.
    """
    feature_numbers = tuple(features)
    shape_features = [number for number in feature_numbers if number < FIRST_WORD_FEATURE][
        :SHAPE_FEATURES
    ]
    word_features = [
        number for number in feature_numbers if FIRST_WORD_FEATURE <= number < FEATURE_COUNT
    ]
    meaning_features = [
        number
        for number in feature_numbers
        if FIRST_MEANING_FEATURE
        <= number
        < FIRST_MEANING_FEATURE + MEANING_STEPS * MEANING_DIMENSIONS
    ]
    return (
        *shape_features,
        *[_MISSING_FEATURE] * (SHAPE_FEATURES - len(shape_features)),
        *word_features,
        *meaning_features,
    )


def _extract_request(turns: Sequence[tuple[str, str]]) -> tuple[str, int, tuple[str, list[str]]]:
    """Return the user's last text, the number of user turns, and the request within a long text.

    A long text is reduced to its beginning and end. The request within it is the result of
    `find_request`; it is empty if the text is not long.

    Args:
        turns: the role and the text of each of the last turns, the newest last.
    """
    user_texts = [text for role, text in turns if role == "user"] or [
        text for _, text in turns[-1:]
    ]
    if not user_texts:
        return "", 1, _NO_REQUEST
    text, request = user_texts[-1], _NO_REQUEST
    if len(text) > _HEAD_LENGTH + _TAIL_LENGTH:
        request = find_request(text, lambda part: _split_words(part, part.lower()))
        text = f"{text[:_HEAD_LENGTH]}\n{text[-_TAIL_LENGTH:]}"
    if len(user_texts) > 1 and len(text) < 40 and text.count(" ") < _SHORT_WORDS:
        # A short message such as "And in Rust?" refers to the previous one.
        text = f"{user_texts[-2][:_TAIL_LENGTH]}\n{text}"
    return text, len(user_texts), request


def _split_words(text: str, lower_text: str) -> list[str]:
    """Return the words of a text in lower case.

    ASCII is split by a table, which is five times as fast as the regular expression.

    Args:
        lower_text: the same text in lower case.
    """
    if text.isascii():
        return text.encode().translate(_ASCII_TABLE).decode().split()
    return _WORD_PATTERN.findall(lower_text)


def _classify_kind(
    text: str, lower_text: str, words: list[str], cues: Set[str], language: str, has_sums: bool
) -> tuple[str, bool]:
    """Return the kind of request to which most words in the text point.

    Args:
        cues: those words of the text that are in one of the lists of `moyin.text.quality.words`.
        has_sums: True if the text contains arithmetic, such as ``3 + 4``.

    Returns:
        The kind; and False if no word pointed to one, so that the kind is only a guess.
    """
    votes: dict[str, float] = {}
    for word in cues & _CUE_WORDS:
        kind = KIND_CUES[word]
        votes[kind] = votes.get(kind, 0.0) + _VOTE_WEIGHT.get(kind, 1.0)
    if language in _SPACELESS_LANGUAGES or not text.isascii():
        for cue, kind in KIND_SUBSTRINGS.items():
            if cue in lower_text:
                votes[kind] = votes.get(kind, 0.0) + 2.0
    if _looks_like_code(text, words, cues):
        votes["code"] = votes.get("code", 0.0) + 2.0
    if has_sums:
        votes["mathematics"] = votes.get("mathematics", 0.0) + 1.0
    if len(votes) > 1:
        # A greeting may precede any request, so it counts only without other votes.
        votes.pop("greeting", None)
    for kind in _TASK_KINDS & votes.keys():
        votes[kind] *= _TASK_VOTE_FACTOR
    if votes:
        # The name resolves ties, because all replicas must agree and the order of sets differs.
        kind = max(votes.items(), key=lambda vote: (vote[1], vote[0]))[0]
        if kind != "greeting" or len(words) <= 2 * _SHORT_WORDS:
            return kind, True
    if words and (words[0] in QUESTION_WORDS or (len(words) > 1 and words[1] in QUESTION_WORDS)):
        return "knowledge", True
    if len(words) > _MIN_STORY_WORDS and text.rstrip().endswith(("?", "\uff1f")):
        # A story with a question, such as "A man, a wolf and a goat … ?", is probably a riddle.
        return "reasoning", False
    return "chat", False


def _looks_like_code(text: str, words: list[str], cues: Set[str]) -> bool:
    for marker in _CODE_MARKERS:  # A loop is three times as fast as `any` with a generator.
        if marker in text:
            return True
    for language in cues & AMBIGUOUS_PROGRAMMING_LANGUAGES:
        previous_index = words.index(language) - 1
        if previous_index >= 0 and words[previous_index] in PROGRAMMING_LANGUAGE_PREFIXES:
            return True
    return False


def _compute_demand_difficulty(cues: Set[str]) -> float:
    """Return the difficulty in logits that demanding words, such as "prove", add to a request.

    Some words make a request easier. The hardest and the easiest word are added up; all others
    are ignored.

    Args:
        cues: those words of the request that are in one of the lists of words.
    """
    difficulties = [DEMAND_DIFFICULTY[word] for word in cues & _DEMAND_WORDS]
    return max(0.0, *difficulties) + min(0.0, *difficulties) if difficulties else 0.0


def _compute_shape_features(
    text: str,
    word_count: int,
    digit_count: int,
    kind: str,
    language: str,
    list_item_count: int,
    has_format: bool,
) -> tuple[int, ...]:
    """Return the features of the request's shape, such as its length and its number of lines.

    Each property, such as the length, has its own range of feature numbers. The result has one
    number from each range.

    Args:
        word_count: the number of words.
        digit_count: the number of digits.
        list_item_count: the number of list items.
        has_format: True if the request has tools or a JSON schema.
    """
    line_count = text.count("\n")
    has_choices = line_count > 0 and _MULTIPLE_CHOICE_PATTERN.search(text) is not None
    return (
        0,  # part of every question: how the model does in general for this tenant
        KIND_NUMBER[kind],
        _LANGUAGE_NUMBER[language],
        80 + min(word_count.bit_length(), 30),
        112 + min(digit_count * 20 // (len(text) + 1), 14),
        128 + min(len(text) // (word_count + 1), 30),
        160 + min(list_item_count, 6) + 8 * has_format + 16 * has_choices,
        200 + min(line_count.bit_length(), 15),
        FORMULA_FEATURE + ("=" in text or "\\" in text or "^" in text),
    )


def _count_digits(text: str) -> int:
    """Return the number of digits in a text.

    Deleting the digits and comparing the lengths is faster than counting them.
    """
    encoded_text = text.encode(errors="surrogatepass")
    return len(encoded_text) - len(encoded_text.translate(None, b"0123456789"))


def _hash_words(
    spaceless_text: str, words: list[str], distinct_words: Iterable[str]
) -> Iterable[int]:
    """Return the features of the words' stems and of the text's first and last words.

    Args:
        spaceless_text: the text if its language has no spaces between words, else "". If it is set,
            the features are those of pairs of neighbouring letters.
        words: the words of the text in their order.
        distinct_words: the same words without repetitions.
    """
    if spaceless_text:
        # In a text without spaces, pairs of neighbouring letters replace words.
        letters = spaceless_text[: _MAX_STEMS + 1]
        return dict.fromkeys(map(_hash_word, map(str.__add__, letters, letters[1:])))
    if not words:
        return ()
    stems = map(_STEM_FEATURES.__getitem__, islice(distinct_words, _MAX_STEMS))
    first_words = words[:3]
    marked_first_words = [f"^{word}" for word in first_words]
    marked_last_words = [f"{word}$" for word in words[-2:]]
    return dict.fromkeys(
        (
            *stems,
            *map(_hash_word, (*marked_first_words, " ".join(first_words[:2]), *marked_last_words)),
        )
    )


class _StemFeatureCache(dict[str, int]):
    """A cache of features by word, in which a lookup is twice as fast as in an `lru_cache`."""

    def __init__(self, stem_length: int) -> None:
        self._stem_length = stem_length

    def __missing__(self, word: str) -> int:
        feature = _hash_word(word[: self._stem_length])
        if len(word) <= _MAX_CACHED_LENGTH:
            if len(self) >= _MAX_CACHED_WORDS:
                self.clear()
            self[word] = feature
        return feature


_STEM_FEATURES = _StemFeatureCache(6)  # six letters make "contract" and "contractual" equal


@lru_cache(maxsize=32_768)
def _hash_word(word: str) -> int:
    """Return the feature number of a word, which, unlike `hash`, is the same in every process."""
    return FIRST_WORD_FEATURE + crc32(word.encode(errors="surrogatepass")) % (
        FEATURE_COUNT - FIRST_WORD_FEATURE
    )
