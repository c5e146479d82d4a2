"""Creates questions and signals for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

from moyin.text.quality.estimator import Signal
from moyin.text.quality.question import Question, build_question

Embed = Callable[[str], tuple[int, ...]]


def make_question(
    *texts: str, prompt_tokens: int | None = None, embed: Embed | None = None, **traits: bool
) -> Question:
    """Return the question of a chat whose user wrote ``texts``, one per turn.

    Args:
        prompt_tokens: the length of the prompt, by default a quarter of its characters.
        traits: features that the chat uses, such as ``tools=True`` or ``pictures=True``.
    """
    turns = [("user", text) for text in texts]
    question_traits = {
        "tools": False,
        "schema": False,
        "pictures": False,
        "thinking": False,
        **traits,
    }
    token_count = sum(map(len, texts)) // 4 if prompt_tokens is None else prompt_tokens
    return build_question(turns, prompt_tokens=token_count, embed=embed, **question_traits)


def make_signal(question: Question, score: float, **changes: object) -> Signal:
    """Return a rating of an answer of llama3.1:8b to the question.

    Args:
        score: the rating, from 0 (bad) to 1 (good).
        changes: other attributes of the signal.
    """
    attributes = {
        "model": "llama3.1:8b",
        "weight": 1.0,
        "source": "feedback",
        "key": "ada",
        "at": 0.0,
    }
    return Signal(question=question, score=score, **{**attributes, **changes})  # type: ignore[arg-type]
