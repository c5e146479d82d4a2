"""Measures the processor time of one routing decision between eight models."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from moyin.text.quality.abilities import look_up_ability
from moyin.text.quality.estimator import Estimator, Signal
from moyin.text.quality.question import Question, build_question

_MODELS = (
    "smollm2-135m",
    "llama3.1:8b",
    "qwen3:8b",
    "gpt-oss:20b",
    "claude-haiku-5-5",
    "claude-sonnet-5-5",
    "claude-opus-5-5",
    "claude-fable-5-1",
)
_TYPICAL = (
    "We are building a small service in Go that reads events from a queue and writes them to Postgres."
    " Sometimes the same event is delivered twice. How should I make the writes idempotent, and what"
    " would the table look like? Please show the code for the consumer as well, and keep error handling"
    " simple."
)
_TEXTS = {
    "greeting": "Say hello",
    "typical (60 words)": _TYPICAL,
    "Japanese (340 letters)": "この文章を英語に翻訳してください。" * 20,
    "a megabyte": _TYPICAL * 3_300,
}
# Rounds are short, so that some are not interrupted on a busy machine.
_ROUNDS, _CALLS = 500, 10


def measure_decisions() -> dict[str, float]:
    """Return the processor time of a decision in µs by the prompt's name, for several prompts.

    The time is that of the fastest round.
    """
    estimator = Estimator()
    candidates = [(model, look_up_ability(model)) for model in _MODELS]
    for model, _ in candidates:
        signal = Signal(
            model=model,
            question=_new_question(_TYPICAL),
            score=1.0,
            weight=1.0,
            source="feedback",
            key="",
            at=0.0,
        )
        estimator.learn("tenant", signal)

    def decide(text: str) -> None:
        question = _new_question(text)
        for model, ability in candidates:
            estimator.estimate("tenant", model, ability, question)

    return {name: _time_fastest(partial(decide, text)) for name, text in _TEXTS.items()}


def _new_question(prompt: str) -> Question:
    return build_question(
        [("user", prompt)],
        tools=False,
        schema=False,
        pictures=False,
        thinking=False,
        prompt_tokens=len(prompt) // 4,
    )


def _time_fastest(call: Callable[[], None]) -> float:
    best_seconds = float("inf")
    for _ in range(_ROUNDS):
        started_at = time.process_time()
        for _ in range(_CALLS):
            call()
        best_seconds = min(best_seconds, time.process_time() - started_at)
    return best_seconds / _CALLS * 1e6
