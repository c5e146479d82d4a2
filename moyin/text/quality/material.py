"""What is asked of a long text that stands beside the request: a report and a question about it.

The text's own words say what it is about, not what is asked for. A question of what was said in a debate
on a tax asks for nothing that takes a tax adviser, only to find it or to tell it.
"""

from __future__ import annotations

from collections.abc import Callable

from moyin.text.quality.words import CUES, QUESTION_WORDS

__all__ = ["request_beside", "what_is_read"]

_REQUEST = 600  # letters at either end of a long text in which its request is looked for
# Kinds whose material is a text that is given.
_OF_A_TEXT = frozenset({"extraction", "summary", "translation"})
_OF_NO_SUBJECT = frozenset({"knowledge", "chat", "reasoning"})
_COUNTING = (["many"], ["much"])  # after "how"
# With one of these first, a question asks for something that can be pointed at.
_FINDING = frozenset(
    [
        "who",
        "whom",
        "whose",
        "when",
        "where",
        "which",
        "wer",
        "wann",
        "wo",
        "welche",
        "qui",
        "quand",
        "où",
        "quién",
        "cuándo",
        "dónde",
    ]
)
# After a question word, with a long text beside it, these ask what was said or done there;
_PAST = frozenset(
    [
        "did",
        "didn",
        "was",
        "wasn",
        "were",
        "weren",
        "had",
        "said",
        "happened",
        "decided",
        "discussed",
        "war",
        "waren",
        "wurde",
        "wurden",
        "hat",
        "haben",
        "hatte",
        "sagte",
        "étaient",
        "était",
        "dit",
        "fue",
        "eran",
        "dijo",
    ]
)
# so do these, where the question is of others.
_REPORTS = frozenset(
    [
        "text",
        "document",
        "article",
        "passage",
        "transcript",
        "meeting",
        "report",
        "paper",
        "chapter",
        "story",
        "author",
        "speaker",
        "thread",
        "log",
        "according",
        "mentioned",
        "say",
        "says",
        "think",
        "thinks",
        "want",
        "wants",
        "propose",
        "proposes",
        "suggest",
        "suggests",
        "recommend",
        "recommends",
        "describe",
        "describes",
        "argue",
        "argues",
        "claim",
        "claims",
        "explain",
        "explains",
        "laut",
        "dokument",
        "artikel",
        "protokoll",
        "bericht",
        "autor",
        "sagt",
        "meint",
        "texte",
        "rapport",
        "auteur",
        "selon",
        "texto",
        "informe",
        "según",
    ]
)
_OWN_MATTER = frozenset(
    [
        "i",
        "we",
        "you",
        "me",
        "us",
        "my",
        "our",
        "your",
        "should",
        "must",
        "ich",
        "wir",
        "mir",
        "uns",
        "mein",
        "unser",
        "soll",
        "sollen",
        "je",
        "nous",
        "notre",
        "mi",
    ]
)


def request_beside(text: str, words_of: Callable[[str], list[str]]) -> tuple[str, list[str]]:
    """Return the last paragraph of a long text, or else the first one, if it is short and asks something.

    And its words; neither where there is none.
    """
    _, gap, last = text[-_REQUEST:].rstrip().rpartition("\n\n")
    if gap and _asks(last, words := words_of(last)):
        return last, words
    first, gap, _ = text[:_REQUEST].lstrip().partition("\n\n")
    if gap and _asks(first, words := words_of(first)):
        return first, words
    return "", []


def what_is_read(asked: list[str], kind: str) -> str:
    """Return `extraction` or `summary` where that is what ``asked`` wants of a text, else nothing.

    Who asks what was said or done there wants that found or told, whatever it was about; so does who asks
    for anything that is neither a matter of their own nor of a subject.

    Args:
        asked: words of the request.
        kind: what its words alone say.
    """
    if kind in ("summary", "extraction"):
        return kind
    if asked[0] not in QUESTION_WORDS and asked[0] not in _REPORTS:
        return ""
    theirs = _OWN_MATTER.isdisjoint(asked)
    told = not _PAST.isdisjoint(asked[1:6]) or (theirs and not _REPORTS.isdisjoint(asked))
    if not told and not (theirs and kind in _OF_NO_SUBJECT):
        return ""
    return "extraction" if asked[0] in _FINDING or asked[1:2] in _COUNTING else "summary"


def _asks(paragraph: str, words: list[str]) -> bool:
    return bool(words) and (
        paragraph.rstrip().endswith(("?", "\uff1f"))
        or not QUESTION_WORDS.isdisjoint(words[:2])
        or any(CUES.get(word) in _OF_A_TEXT for word in words)
    )
