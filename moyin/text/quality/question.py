"""Describes a request before any model has answered it: its kind, language and difficulty.

The difficulty is a sum that can be read from top to bottom in `question_of`: of the kind, the
demands, the length, and further constraints. It is a guess, and its spread states how good a guess.

No text is kept. Words become numbers by a hash, at most about a hundred.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from zlib import crc32

from moyin.text.quality.language import MIN_DIFFICULTY, language_of
from moyin.text.quality.long_text import find_request, reading_kind
from moyin.text.quality.prior import KIND_DIFFICULTY, KIND_SPREAD
from moyin.text.quality.words import (
    AMBIGUOUS_LANGUAGES,
    DEMANDS,
    FUNCTION_WORDS,
    KIND_CUES,
    LANGUAGE_PREFIXES,
    QUESTION_WORDS,
    SUBSTRINGS,
)

__all__ = [
    "DIMENSIONS",
    "FEATURE_COUNT",
    "FIRST_MEANING",
    "FIRST_MEANING_VALUE",
    "FIRST_WORD",
    "FORMULA_FEATURE",
    "KINDS",
    "KIND_NUMBER",
    "LANGUAGES",
    "MEANING_SCALE",
    "MEANING_STEPS",
    "SHAPE_FEATURES",
    "Question",
    "question_of",
    "stored_features",
]

# Stored weights are numbered by this order, so it must not change; add new kinds at the end.
KINDS: tuple[str, ...] = (
    "greeting",
    "extraction",
    "writing",
    "summary",
    "knowledge",
    "chat",
    "translation",
    "medicine",
    "law",
    "finance",
    "reasoning",
    "code",
    "mathematics",
)
LANGUAGES: tuple[str, ...] = tuple(MIN_DIFFICULTY)

# Number of weights per tenant and model; features of shape and words are below it.
FEATURE_COUNT = 8_192
# Number of features of the shape, with which each question begins; hashed words follow.
SHAPE_FEATURES = 9
FORMULA_FEATURE = 224  # this number: without formulae; the next: with formulae
FIRST_WORD = 512  # features of shape are below this, words from here on
# An embedder adds one number per dimension of the meaning. It encodes the dimension and its value:
# `FIRST_MEANING_VALUE + MEANING_STEPS * dimension + step`. The weight of a dimension has the number
# `FIRST_MEANING + dimension`.
DIMENSIONS, MEANING_STEPS, FIRST_MEANING_VALUE, FIRST_MEANING = 256, 255, FEATURE_COUNT, 226
MEANING_SCALE = 256  # steps per unit: dimensions of a unit vector are about 1/16
_MISSING_FEATURE = FIRST_WORD - 1  # stands for a feature that a stored question lacks
_MAX_STEMS = 80  # distinct words that are hashed, besides six features of beginning and end
# Letters that are read at the ends of a longer text, where requests usually are.
_HEAD_LENGTH, _TAIL_LENGTH = 1_600, 400
_MAX_CACHED_WORDS, _MAX_CACHED_LENGTH = (
    32_768,
    32,
)  # size of the cache, and letters of its longest word
_NO_REQUEST: tuple[str, list[str]] = ("", [])
_MIN_STORY_WORDS = 10  # words; a riddle tells a story before it asks
_SHORT_WORDS = 6  # words; a shorter message means little without the previous one

_WORD = re.compile(r"[\w+#]+")
# The same for ASCII as a table: letters become lower case, separators become spaces.
_ASCII = bytes(
    byte if byte > 127 or chr(byte).isalnum() or chr(byte) in "_+#" else 32 for byte in range(256)
).lower()
_SPACELESS = frozenset({"ja", "zh", "th"})
# Typical of code. Searching for them one by one is faster than one expression.
_CODE_MARKS = ("```", "def ", "();", "{\n", ";\n", "=>", "</", "#include", "SELECT ", "O(n", "() ")
_ARITHMETIC = re.compile(r"\d\s*[-+*/\u00d7\u00f7^=<>]\s*[-(]?\d|\\frac|\\int|\$\d")
_MULTIPLE_CHOICE = re.compile(r"\n\(?[A-D][.)] ")
_LIST_ITEMS = re.compile(r"(?:^|\n)\s*(?:\d+[.)]|[-*]) ")

# Logits, each with its reason.
# Added per doubling beyond _USUAL_TOKENS, because there is more to read and to get wrong. From 4,096 to 32,768 tokens of RULER
# models lose 0.26 (Qwen3 235B), 0.31 (Qwen3 8B) and 0.37 (Llama 3.1 8B) logits by doubling.
_PER_DOUBLING = 0.3
_USUAL_TOKENS = 500
# A longer request usually asks for more. The slope is that of the public tables' development
# folds, where anything from 0.3 to 0.6 fits about as well.
_PER_WORDS = 0.4  # per doubling of the words, from _FEW_WORDS to _MANY_WORDS
_FEW_WORDS, _MANY_WORDS = 12, 200
# If the text is material rather than a request, its length adds only reading.
_MATERIAL_KINDS = frozenset({"extraction", "summary", "translation"})
_MAX_LENGTH_DIFFICULTY = 2.5
_PER_STEP = 0.15  # each list item can be missed
_MAX_STEPS = 8
_TOOLS = 0.8  # the call must name a tool and fill its arguments
_SCHEMA = 0.3  # constrained decoding keeps the form, the content still has to fit
_PICTURES = 0.5
_THINKING = 0.6  # a client that enables thinking expects a hard task
_PER_TURN = 0.1  # per turn of the conversation that must be remembered
_MAX_TURNS = 8
_PLAIN_ARITHMETIC = -2.4  # "what is 17 * 23" needs no reading
_UNCERTAIN_KIND_SPREAD = 0.4  # added to the spread if no word shows the kind

KIND_NUMBER = {kind: 16 + number for number, kind in enumerate(KINDS)}
_LANGUAGE_NUMBER = {language: 48 + number for number, language in enumerate(LANGUAGES)}
_CUE_WORDS, _DEMAND_WORDS = KIND_CUES.keys(), DEMANDS.keys()
_TELLING_WORDS = frozenset(_CUE_WORDS | _DEMAND_WORDS | FUNCTION_WORDS.keys() | AMBIGUOUS_LANGUAGES)
# Terms of law or medicine weigh more than "list" or "code" beside them.
_VOTE_WEIGHT = {"law": 1.2, "medicine": 1.2, "greeting": 0.9, "finance": 1.1, "translation": 2.5}
# Words of a task win over words of its topic: "summarize this contract".
_TASK_KINDS = frozenset({"summary", "extraction"})
_TASK_VOTE_FACTOR = 1.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Describes a request by what predicts the quality of its answer.

    Attributes:
        kind: one of `KINDS`.
        language: one of `LANGUAGES`.
        difficulty: logits, on the scale of `moyin.text.quality.abilities`.
        spread: standard deviation of ``difficulty``.
        features: `SHAPE_FEATURES` numbers of the shape, then hashed words, each below
            `FEATURE_COUNT`; with an embedder also `DIMENSIONS` numbers of the meaning, from
            `FIRST_MEANING_VALUE` on.
    """

    kind: str
    language: str
    difficulty: float
    spread: float
    features: tuple[int, ...]


def question_of(
    texts: Sequence[tuple[str, str]],
    *,
    tools: bool,
    schema: bool,
    pictures: bool,
    thinking: bool,
    prompt_tokens: int,
    embed: Callable[[str], tuple[int, ...]] | None = None,
) -> Question:
    """Return the description of a request.

    Args:
        texts: role and text of the last turns, the newest last.
        prompt_tokens: of the whole prompt, which may be longer than ``texts``.
        embed: returns features of a text's meaning; None: only its words are used.
    """
    text, turns, (request, request_words) = _request_text(texts)
    lowered = text.lower()
    words = _words(text, lowered)
    distinct = dict.fromkeys(words)
    # A request has few telling words. They are found once for language, kind and demand, because an
    # intersection by `&` with a dictionary's keys takes eight times as long.
    telling = _TELLING_WORDS.intersection(words)
    digits = _count_digits(text)
    language = language_of(text, telling)
    has_sums = digits > 0 and _ARITHMETIC.search(text) is not None
    demand_words, kind, is_certain = telling, "", False
    is_exam = _MULTIPLE_CHOICE.search(request) is not None
    if request and not is_exam and not _looks_like_code(text, words, telling):
        # The request stands beside a long text, whose own words show only its topic.
        demand_words = _TELLING_WORDS.intersection(request_words)
        kind, is_certain = _kind_of(
            request, request.lower(), request_words, demand_words, language, False
        )
        reading = reading_kind(request_words, kind)
        kind, is_certain = reading or kind, bool(reading) or (is_certain and kind != "knowledge")
    if not is_certain:
        demand_words = telling
        kind, is_certain = _kind_of(text, lowered, words, telling, language, has_sums)

    difficulty = KIND_DIFFICULTY[kind] + _demand_difficulty(demand_words)
    if has_sums and kind == "mathematics" and len(words) < 2 * _SHORT_WORDS:
        difficulty += _PLAIN_ARITHMETIC
    if len(words) > _FEW_WORDS and kind not in _MATERIAL_KINDS:
        difficulty += _PER_WORDS * math.log2(min(len(words), _MANY_WORDS) / _FEW_WORDS)
    if prompt_tokens > _USUAL_TOKENS:
        difficulty += min(
            _PER_DOUBLING * math.log2(prompt_tokens / _USUAL_TOKENS), _MAX_LENGTH_DIFFICULTY
        )
    steps = len(_LIST_ITEMS.findall(text)) if "\n" in text and len(text) < _HEAD_LENGTH else 0
    difficulty += _PER_STEP * min(steps, _MAX_STEPS) + _PER_TURN * min(turns - 1, _MAX_TURNS)
    # Booleans count as 0 or 1.
    difficulty += _TOOLS * tools + _SCHEMA * schema + _PICTURES * pictures + _THINKING * thinking
    difficulty = max(difficulty, MIN_DIFFICULTY[language])

    spread = KIND_SPREAD[kind] + (0.0 if is_certain else _UNCERTAIN_KIND_SPREAD)
    return Question(
        kind=kind,
        language=language,
        difficulty=difficulty,
        spread=spread,
        features=(
            *_shape_features(text, len(words), digits, kind, language, steps, tools or schema),
            *_word_features(text if language in _SPACELESS else "", words, distinct),
            *(() if embed is None else embed(text)),
        ),
    )


def stored_features(features: Iterable[int]) -> tuple[int, ...]:
    """Return the features of a stored question in the current layout.

    An earlier version may have stored fewer features of the shape, and a later one more. Their
    numbers distinguish them from words, so that none is mistaken for another.
    """
    numbers = tuple(features)
    shape = [number for number in numbers if number < FIRST_WORD][:SHAPE_FEATURES]
    words = [number for number in numbers if FIRST_WORD <= number < FEATURE_COUNT]
    meaning = [
        number
        for number in numbers
        if FIRST_MEANING_VALUE <= number < FIRST_MEANING_VALUE + MEANING_STEPS * DIMENSIONS
    ]
    return (*shape, *[_MISSING_FEATURE] * (SHAPE_FEATURES - len(shape)), *words, *meaning)


def _request_text(texts: Sequence[tuple[str, str]]) -> tuple[str, int, tuple[str, list[str]]]:
    """Return the text that asks, the number of user turns, and the request within a long text.

    The text is cut to its ends. The request is a paragraph with its words, see `find_request`.
    """
    user_texts = [text for role, text in texts if role == "user"] or [
        text for _, text in texts[-1:]
    ]
    if not user_texts:
        return "", 1, _NO_REQUEST
    text, request = user_texts[-1], _NO_REQUEST
    if len(text) > _HEAD_LENGTH + _TAIL_LENGTH:
        request = find_request(text, lambda part: _words(part, part.lower()))
        text = f"{text[:_HEAD_LENGTH]}\n{text[-_TAIL_LENGTH:]}"
    if len(user_texts) > 1 and len(text) < 40 and text.count(" ") < _SHORT_WORDS:
        # "And in Rust?" repeats the previous request.
        text = f"{user_texts[-2][:_TAIL_LENGTH]}\n{text}"
    return text, len(user_texts), request


def _words(text: str, lowered: str) -> list[str]:
    """Return the words in lower case. For ASCII, a table is five times as fast."""
    if text.isascii():
        return text.encode().translate(_ASCII).decode().split()
    return _WORD.findall(lowered)


def _kind_of(
    text: str, lowered: str, words: list[str], telling: Set[str], language: str, has_sums: bool
) -> tuple[str, bool]:
    """Return the kind with the most votes, and whether there was any vote."""
    votes: dict[str, float] = {}
    for word in telling & _CUE_WORDS:
        kind = KIND_CUES[word]
        votes[kind] = votes.get(kind, 0.0) + _VOTE_WEIGHT.get(kind, 1.0)
    if language in _SPACELESS or not text.isascii():
        for cue, kind in SUBSTRINGS.items():
            if cue in lowered:
                votes[kind] = votes.get(kind, 0.0) + 2.0
    if _looks_like_code(text, words, telling):
        votes["code"] = votes.get("code", 0.0) + 2.0
    if has_sums:
        votes["mathematics"] = votes.get("mathematics", 0.0) + 1.0
    if len(votes) > 1:
        # A greeting may precede any request, so it counts only on its own.
        votes.pop("greeting", None)
    for kind in _TASK_KINDS & votes.keys():
        votes[kind] *= _TASK_VOTE_FACTOR
    if votes:
        # Ties are resolved by name, because replicas must agree and the order of sets differs.
        kind = max(votes.items(), key=lambda vote: (vote[1], vote[0]))[0]
        if kind != "greeting" or len(words) <= 2 * _SHORT_WORDS:
            return kind, True
    if words and (words[0] in QUESTION_WORDS or (len(words) > 1 and words[1] in QUESTION_WORDS)):
        return "knowledge", True
    if len(words) > _MIN_STORY_WORDS and text.rstrip().endswith(("?", "\uff1f")):
        # A question after a story of no other kind: "A man, a wolf and a goat … ?"
        return "reasoning", False
    return "chat", False


def _looks_like_code(text: str, words: list[str], telling: Set[str]) -> bool:
    for mark in _CODE_MARKS:  # a loop, since a generator takes three times as long
        if mark in text:
            return True
    for name in telling & AMBIGUOUS_LANGUAGES:
        before = words.index(name) - 1
        if before >= 0 and words[before] in LANGUAGE_PREFIXES:
            return True
    return False


def _demand_difficulty(telling: Set[str]) -> float:
    """Return the logits of the hardest and of the easiest demand."""
    difficulties = [DEMANDS[word] for word in telling & _DEMAND_WORDS]
    return max(0.0, *difficulties) + min(0.0, *difficulties) if difficulties else 0.0


def _shape_features(
    text: str, count: int, digits: int, kind: str, language: str, steps: int, has_format: bool
) -> tuple[int, ...]:
    """Return the features of the shape, one per group, so that each gets a weight."""
    lines = text.count("\n")
    choices = lines > 0 and _MULTIPLE_CHOICE.search(text) is not None
    return (
        0,  # in every question: the model in general for this tenant
        KIND_NUMBER[kind],
        _LANGUAGE_NUMBER[language],
        80 + min(count.bit_length(), 30),
        112 + min(digits * 20 // (len(text) + 1), 14),
        128 + min(len(text) // (count + 1), 30),
        160 + min(steps, 6) + 8 * has_format + 16 * choices,
        200 + min(lines.bit_length(), 15),
        FORMULA_FEATURE + ("=" in text or "\\" in text or "^" in text),
    )


def _count_digits(text: str) -> int:
    """Return the number of digits. Deleting them and comparing lengths takes a microsecond."""
    letters = text.encode(errors="surrogatepass")
    return len(letters) - len(letters.translate(None, b"0123456789"))


def _word_features(spaceless: str, words: list[str], distinct: Iterable[str]) -> Iterable[int]:
    """Return the features of the words' stems, and of the text's beginning and end."""
    if spaceless:
        # Without spaces, neighbouring letters stand in for words.
        letters = spaceless[: _MAX_STEMS + 1]
        return dict.fromkeys(map(_word_feature, map(str.__add__, letters, letters[1:])))
    if not words:
        return ()
    stems = map(_STEM_FEATURES.__getitem__, islice(distinct, _MAX_STEMS))
    first = words[:3]
    starts = [f"^{word}" for word in first]
    ends = [f"{word}$" for word in words[-2:]]
    return dict.fromkeys((*stems, *map(_word_feature, (*starts, " ".join(first[:2]), *ends))))


class _StemFeatures(dict[str, int]):
    """Caches features by word. A lookup takes half as long as one in an `lru_cache`."""

    def __init__(self, letters: int) -> None:
        self._letters = letters

    def __missing__(self, word: str) -> int:
        number = _word_feature(word[: self._letters])
        if len(word) <= _MAX_CACHED_LENGTH:
            if len(self) >= _MAX_CACHED_WORDS:
                self.clear()
            self[word] = number
        return number


# "contract", "contracts" and "contractual" are one topic.
_STEM_FEATURES = _StemFeatures(6)


@lru_cache(maxsize=32_768)
def _word_feature(word: str) -> int:
    """Return the feature of a word. Unlike `hash`, it is the same in every process."""
    return FIRST_WORD + crc32(word.encode(errors="surrogatepass")) % (FEATURE_COUNT - FIRST_WORD)
