"""What is known of a request before any model has answered it: its kind, language and difficulty.

The difficulty is a sum that can be read from the top to the bottom of `question_of`: of the kind,
of what is asked for, of the length, and of what else must be obeyed. It is a guess, and its spread
says how good a guess.

No text is kept. Words become numbers by a hash, about a hundred at most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from zlib import crc32

from moyin.text.quality.language import FLOORS, language_of
from moyin.text.quality.material import request_beside, what_is_read
from moyin.text.quality.prior import KIND_DIFFICULTY, KIND_SPREAD
from moyin.text.quality.words import (
    ASKS,
    BARE_LANGUAGES,
    BEFORE_A_LANGUAGE,
    CUES,
    FUNCTION_WORDS,
    QUESTION_WORDS,
    SUBSTRINGS,
)

__all__ = [
    "DIMENSIONS",
    "FINE",
    "FIRST_MEANING",
    "FIRST_WORD",
    "FORMULAE",
    "KINDS",
    "KIND_NUMBER",
    "LANGUAGES",
    "MEANINGS",
    "SHAPES",
    "SIZE",
    "STEPS",
    "Question",
    "question_of",
    "stored_features",
]

# Weights are stored under numbers that follow this order. It stays; what is new comes last.
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
LANGUAGES: tuple[str, ...] = tuple(FLOORS)

# Numbers of features are below this: a tenant's memory of a model has as many weights.
SIZE = 8_192
# Each question begins with so many features of its shape; hashed words follow.
SHAPES = 9
FORMULAE = 224  # this and the next number: without and with formulae
FIRST_WORD = 512  # features of shape are numbered below, words from here on
# An embedder adds so many numbers of what a text means. A number holds the dimension and its value in
# steps, `MEANINGS + STEPS * dimension + step`; the dimension's weight has `FIRST_MEANING + dimension`.
DIMENSIONS, STEPS, MEANINGS, FIRST_MEANING = 256, 255, SIZE, 226
FINE = 256  # steps to 1: a vector of unit length has dimensions of about a sixteenth
_UNTOLD = FIRST_WORD - 1  # in the place of a feature that a stored question does not have
_STEMS = 80  # distinct words that are hashed; six more tell how the text begins and ends
_HEAD, _TAIL = 1_600, 400  # letters that are read of a longer text: requests stand at its ends
_MOST_WORDS, _LONGEST_WORD = 32_768, 32  # that are kept with their numbers; letters
_NO_REQUEST: tuple[str, list[str]] = ("", [])
_STORY = 10  # words; a riddle tells something before it asks
_SHORT = 6  # words; a shorter message says little without the one before it

_WORD = re.compile(r"[\w+#]+")
# The same for ASCII, as a table: capitals become small, what is no part of a word a space.
_ASCII = bytes(
    byte if byte > 127 or chr(byte).isalnum() or chr(byte) in "_+#" else 32 for byte in range(256)
).lower()
_SPACELESS = frozenset({"ja", "zh", "th"})
# What stands in code and seldom elsewhere. Looked up one by one: faster than one expression.
_CODE = ("```", "def ", "();", "{\n", ";\n", "=>", "</", "#include", "SELECT ", "O(n", "() ")
_SUM = re.compile(r"\d\s*[-+*/\u00d7\u00f7^=<>]\s*[-(]?\d|\\frac|\\int|\$\d")
_CHOICES = re.compile(r"\n\(?[A-D][.)] ")
_STEPS = re.compile(r"(?:^|\n)\s*(?:\d+[.)]|[-*]) ")

# Logits, each with its reason.
# Of a text beyond _MIDDLING tokens: more to read and to get wrong. From 4,096 to 32,768 tokens of RULER
# models lose 0.26 (Qwen3 235B), 0.31 (Qwen3 8B) and 0.37 (Llama 3.1 8B) logits by doubling.
_PER_DOUBLING = 0.3
_MIDDLING = 500
# Whoever needs more words to ask asks for more. The slope is that of the public tables' development
# folds, where anything from 0.3 to 0.6 fits about as well.
_PER_WORDS = 0.4  # by doubling of the words, from _BRIEF to _MANY
_BRIEF, _MANY = 12, 200
# Where the text is the material and not the request, reading it is all that its length asks.
_MATERIAL = frozenset({"extraction", "summary", "translation"})
_LONGEST = 2.5
_PER_STEP = 0.15  # each listed demand can be missed
_MOST_STEPS = 8
_TOOLS = 0.8  # the call must name a tool and fill its arguments
_SCHEMA = 0.3  # constrained decoding keeps the form, the content still has to fit
_PICTURES = 0.5
_THINKING = 0.6  # who asks for thinking expects that it is needed
_PER_TURN = 0.1  # of the conversation, which has to be kept in mind
_MOST_TURNS = 8
_PLAIN_SUM = -2.4  # "what is 17 * 23" needs no reading
_VAGUE = 0.4  # spread that is added where no word showed the kind

KIND_NUMBER = {kind: 16 + number for number, kind in enumerate(KINDS)}
_LANGUAGE_NUMBER = {language: 48 + number for number, language in enumerate(LANGUAGES)}
_CUES, _ASKS = CUES.keys(), ASKS.keys()
_TELLING = frozenset(_CUES | _ASKS | FUNCTION_WORDS.keys() | BARE_LANGUAGES)
# A lawyer's or physician's own words weigh more than "list" or "code" beside them.
_VOTE = {"law": 1.2, "medicine": 1.2, "greeting": 0.9, "finance": 1.1, "translation": 2.5}
# Among them, words of a task win over words of its subject: "summarize this contract".
_TASKS = frozenset({"summary", "extraction"})
_TASK_VOTE = 1.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A request, as far as the quality of its answer can be guessed.

    Attributes:
        kind: one of `KINDS`.
        language: one of `LANGUAGES`.
        difficulty: logits, on the scale of `moyin.text.quality.abilities`.
        spread: standard deviation of what is known about ``difficulty``.
        features: `SHAPES` numbers of the shape, then hashed words, each below `SIZE`; with an
            embedder, `DIMENSIONS` numbers from `MEANINGS` on, of what the text means.
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
    """Return what the words and the shape of a request say about it.

    Args:
        texts: role and text of the last turns, the newest last.
        prompt_tokens: of the whole prompt, which may be longer than ``texts``.
        embed: returns the numbers of what a text means; None: words say all.
    """
    text, turns, (request, asked) = _asked(texts)
    lowered = text.lower()
    words = _words(text, lowered)
    distinct = dict.fromkeys(words)
    # A request has few telling words; they are found once for language, kind and demand. An
    # intersection by `&` with a dictionary's keys takes eight times as long.
    telling = _TELLING.intersection(words)
    digits = _digits(text)
    language = language_of(text, telling)
    sums = digits > 0 and _SUM.search(text) is not None
    asking, kind, sure = telling, "", False
    exam = _CHOICES.search(request) is not None
    if request and not exam and not _looks_like_code(text, words, telling):
        # What is asked of a long text stands beside it, whose own words say what it is about.
        asking = _TELLING.intersection(asked)
        kind, sure = _kind_of(request, request.lower(), asked, asking, language, False)
        read = what_is_read(asked, kind)
        kind, sure = read or kind, bool(read) or (sure and kind != "knowledge")
    if not sure:
        asking = telling
        kind, sure = _kind_of(text, lowered, words, telling, language, sums)

    difficulty = KIND_DIFFICULTY[kind] + _ask(asking)
    if sums and kind == "mathematics" and len(words) < 2 * _SHORT:
        difficulty += _PLAIN_SUM
    if len(words) > _BRIEF and kind not in _MATERIAL:
        difficulty += _PER_WORDS * math.log2(min(len(words), _MANY) / _BRIEF)
    if prompt_tokens > _MIDDLING:
        difficulty += min(_PER_DOUBLING * math.log2(prompt_tokens / _MIDDLING), _LONGEST)
    steps = len(_STEPS.findall(text)) if "\n" in text and len(text) < _HEAD else 0
    difficulty += _PER_STEP * min(steps, _MOST_STEPS) + _PER_TURN * min(turns - 1, _MOST_TURNS)
    # Sums of truths: True counts as 1.
    difficulty += _TOOLS * tools + _SCHEMA * schema + _PICTURES * pictures + _THINKING * thinking
    difficulty = max(difficulty, FLOORS[language])

    spread = KIND_SPREAD[kind] + (0.0 if sure else _VAGUE)
    return Question(
        kind=kind,
        language=language,
        difficulty=difficulty,
        spread=spread,
        features=(
            *_shape(text, len(words), digits, kind, language, steps, tools or schema),
            *_hashed(text if language in _SPACELESS else "", words, distinct),
            *(() if embed is None else embed(text)),
        ),
    )


def stored_features(features: Iterable[int]) -> tuple[int, ...]:
    """Return the features of a stored question as `Question` has them.

    An earlier version may have stored it with fewer features of the shape, a later one, before this
    was installed again, with more. Numbers tell them from words, so that none is taken for another.
    """
    numbers = tuple(features)
    shape = [number for number in numbers if number < FIRST_WORD][:SHAPES]
    words = [number for number in numbers if FIRST_WORD <= number < SIZE]
    meaning = [number for number in numbers if MEANINGS <= number < MEANINGS + STEPS * DIMENSIONS]
    return (*shape, *[_UNTOLD] * (SHAPES - len(shape)), *words, *meaning)


def _asked(texts: Sequence[tuple[str, str]]) -> tuple[str, int, tuple[str, list[str]]]:
    """The text that asks, shortened to its ends, how many turns the user took, and of a long text the
    paragraph that asks something of the rest, with its words."""
    own = [text for role, text in texts if role == "user"] or [text for _, text in texts[-1:]]
    if not own:
        return "", 1, _NO_REQUEST
    text, request = own[-1], _NO_REQUEST
    if len(text) > _HEAD + _TAIL:
        request = request_beside(text, lambda part: _words(part, part.lower()))
        text = f"{text[:_HEAD]}\n{text[-_TAIL:]}"
    if len(own) > 1 and len(text) < 40 and text.count(" ") < _SHORT:
        # "And in Rust?" asks what was asked before.
        text = f"{own[-2][:_TAIL]}\n{text}"
    return text, len(own), request


def _words(text: str, lowered: str) -> list[str]:
    """The words in small letters. A table finds those of ASCII five times as fast."""
    if text.isascii():
        return text.encode().translate(_ASCII).decode().split()
    return _WORD.findall(lowered)


def _kind_of(
    text: str, lowered: str, words: list[str], telling: Set[str], language: str, sums: bool
) -> tuple[str, bool]:
    """The kind with the most votes, and whether anything voted."""
    votes: dict[str, float] = {}
    for word in telling & _CUES:
        kind = CUES[word]
        votes[kind] = votes.get(kind, 0.0) + _VOTE.get(kind, 1.0)
    if language in _SPACELESS or not text.isascii():
        for cue, kind in SUBSTRINGS.items():
            if cue in lowered:
                votes[kind] = votes.get(kind, 0.0) + 2.0
    if _looks_like_code(text, words, telling):
        votes["code"] = votes.get("code", 0.0) + 2.0
    if sums:
        votes["mathematics"] = votes.get("mathematics", 0.0) + 1.0
    if len(votes) > 1:
        # A greeting may stand before anything; it is the kind only where nothing else is.
        votes.pop("greeting", None)
    for kind in _TASKS & votes.keys():
        votes[kind] *= _TASK_VOTE
    if votes:
        # Ties go by name: sets have another order in every process, and replicas must agree.
        kind = max(votes.items(), key=lambda vote: (vote[1], vote[0]))[0]
        if kind != "greeting" or len(words) <= 2 * _SHORT:
            return kind, True
    if words and (words[0] in QUESTION_WORDS or (len(words) > 1 and words[1] in QUESTION_WORDS)):
        return "knowledge", True
    if len(words) > _STORY and text.rstrip().endswith(("?", "\uff1f")):
        # A question after a story that no other kind knows: "A man, a wolf and a goat … ?"
        return "reasoning", False
    return "chat", False


def _looks_like_code(text: str, words: list[str], telling: Set[str]) -> bool:
    for mark in _CODE:  # a loop, since a generator takes three times as long
        if mark in text:
            return True
    for name in telling & BARE_LANGUAGES:
        before = words.index(name) - 1
        if before >= 0 and words[before] in BEFORE_A_LANGUAGE:
            return True
    return False


def _ask(telling: Set[str]) -> float:
    """Logits of what is asked for: of the hardest demand and the easiest."""
    asks = [ASKS[word] for word in telling & _ASKS]
    return max(0.0, *asks) + min(0.0, *asks) if asks else 0.0


def _shape(
    text: str, count: int, digits: int, kind: str, language: str, steps: int, bound: bool
) -> tuple[int, ...]:
    """Numbers of the shape: one of each row, so that a model can learn a weight for each."""
    lines = text.count("\n")
    choices = lines > 0 and _CHOICES.search(text) is not None
    return (
        0,  # every question: what the model is in general for this tenant
        KIND_NUMBER[kind],
        _LANGUAGE_NUMBER[language],
        80 + min(count.bit_length(), 30),
        112 + min(digits * 20 // (len(text) + 1), 14),
        128 + min(len(text) // (count + 1), 30),
        160 + min(steps, 6) + 8 * bound + 16 * choices,
        200 + min(lines.bit_length(), 15),
        FORMULAE + ("=" in text or "\\" in text or "^" in text),
    )


def _digits(text: str) -> int:
    """How many digits there are. Deleting them and comparing lengths takes a microsecond."""
    letters = text.encode(errors="surrogatepass")
    return len(letters) - len(letters.translate(None, b"0123456789"))


def _hashed(spaceless: str, words: list[str], distinct: Iterable[str]) -> Iterable[int]:
    """Numbers of the words' stems, and of how the text begins and ends."""
    if spaceless:
        # Without spaces, neighbouring letters stand in for words.
        letters = spaceless[: _STEMS + 1]
        return dict.fromkeys(map(_number, map(str.__add__, letters, letters[1:])))
    if not words:
        return ()
    stems = map(_STEM_NUMBERS.__getitem__, islice(distinct, _STEMS))
    first = words[:3]
    begins = [f"^{word}" for word in first]
    ends = [f"{word}$" for word in words[-2:]]
    return dict.fromkeys((*stems, *map(_number, (*begins, " ".join(first[:2]), *ends))))


class _StemNumbers(dict[str, int]):
    """Numbers of words by the word. Bounded; a lookup takes half as long as one in an `lru_cache`."""

    def __init__(self, letters: int) -> None:
        self._letters = letters

    def __missing__(self, word: str) -> int:
        number = _number(word[: self._letters])
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _MOST_WORDS:
                self.clear()
            self[word] = number
        return number


# "contract", "contracts" and "contractual" are one topic.
_STEM_NUMBERS = _StemNumbers(6)


@lru_cache(maxsize=32_768)
def _number(word: str) -> int:
    """The feature of a word: the same in every process, unlike `hash`."""
    return FIRST_WORD + crc32(word.encode(errors="surrogatepass")) % (SIZE - FIRST_WORD)
