"""Lists public scores of known models in four kinds of request, and converts them to abilities.

Recent small models are far better at arithmetic and code than their MMLU scores show. The score for
mathematics is GSM8K. The score for code is the mean of HumanEval and MBPP, or the mean of EvalPlus'
four scores: for each of these two benchmarks, with and without EvalPlus' stricter tests.

A score is the share of a benchmark's questions that a model solves. The ability is chosen so that
the estimate for such a question equals the score. Vendors publish flattering scores, on questions
that are in training data, in a format that suits the model. Therefore 0.25 logits are subtracted:
90 % become 87.5 %, and 70 % become 65 %. On new questions like GSM8K's (GSM1k, arXiv 2405.00332),
models lost up to 8 points. Nothing is subtracted from EvalPlus' scores, because they are stricter:
for the 67 instructed models of which its table has all four scores, they are 0.26 logits below the
mean of HumanEval and MBPP.

The score for extraction is RULER's accuracy at 4,096 tokens. The score for summaries is the share
of texts that a model summarises without an invention, from Vectara's leaderboard. Both test less
than a good answer needs: RULER's texts are artificial, and a faithful summary may miss the point.
So `moyin.text.quality.abilities` averages these scores with the general ability.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

# The difficulty that `moyin.text.quality.question` computes for questions of GSM8K (development
# folds) and HumanEval (development mix), see docs/quality.md. Both have 12 to 60 words.
_GSM8K_DIFFICULTY = 1.95
_CODE_DIFFICULTY = 1.98
# The difficulty of extraction and summaries (`moyin.text.quality.prior`), plus that of reading
# 4,096 or about 1,000 tokens.
_READING_DIFFICULTY = 0.0
_SUMMARY_DIFFICULTY = 0.0
# The factor by which uncertainty and variety flatten an estimate: sqrt(1 + pi / 8 * (0.5**2 + 1)).
# It is smaller where the questions of a kind have a spread of 0.8.
_FLATTENING = 1.22
_TEXT_FLATTENING = 1.16
_PUBLICATION_BIAS = 0.25  # logits

# GSM8K, the mean of HumanEval and MBPP, and EvalPlus' average, in percent. None means that the
# score was not published, or not for the instructed model.
_Scores = tuple[float | None, float | None, float | None]
_SCORES: dict[str, _Scores] = {
    # Meta's cards. Llama 3.2 has no score for code. Llama 3.3 and 4 have MGSM instead of GSM8K: the
    # same questions in other languages, with rather lower scores. Code of 3 and 3.1 8B is from the
    # last version of EvalPlus' table (2024-12-26).
    "llama-2-7b": (25.7, 7.9, None), "llama-2-13b": (41.2, 14.0, None),
    "llama-2-70b": (57.5, 25.6, None), "llama-3-8b": (79.6, None, 59.4),
    "llama-3-70b": (93.0, None, 75.2), "llama-3.1-8b": (84.5, None, 64.1),
    "llama-3.1-70b": (95.1, 83.3, None), "llama-3.1-405b": (96.8, 88.8, None),
    "llama-3.2-1b": (44.4, None, None), "llama-3.2-3b": (77.7, None, None),
    "llama-3.3-70b": (91.1, 88.0, None), "llama-4-scout": (90.6, None, None),
    "llama-4-maverick": (92.3, None, None),
    # Qwen2.5 report, instructed models (from a copy that swaps two columns of the 72B table)
    "qwen2-0.5b": (40.1, 35.4, None), "qwen2-1.5b": (61.6, 43.2, None),
    "qwen2-7b": (85.7, 73.6, None), "qwen2-72b": (93.2, 83.1, None),
    "qwen2.5-0.5b": (49.6, 42.5, None), "qwen2.5-1.5b": (73.2, 62.4, None),
    "qwen2.5-3b": (86.7, 73.6, None), "qwen2.5-7b": (91.6, 82.0, None),
    "qwen2.5-14b": (94.8, 82.8, None), "qwen2.5-32b": (95.9, 86.2, None),
    "qwen2.5-72b": (95.8, 87.4, None),
    # Qwen3 report, base models, because it has neither score for the instructed ones. vLLM Kunlun's
    # accuracy report has 91.4 and 80.5 (HumanEval) for the instructed 8B.
    "qwen3-0.6b": (59.6, None, 36.2), "qwen3-1.7b": (75.4, None, 52.7),
    "qwen3-4b": (87.8, None, 63.5), "qwen3-8b": (89.8, None, 67.7), "qwen3-14b": (92.5, None, 72.2),
    "qwen3-30b": (91.8, None, 71.5), "qwen3-32b": (93.4, None, 72.1),
    "qwen3-235b": (94.4, None, 77.6),
    # Gemma 2: Qwen2.5 report. Gemma 1: Microsoft's Phi-3 card and EvalPlus' table. Gemma 3: its
    # report, instructed models, as others quote it.
    "gemma-7b": (59.8, None, 34.4), "gemma-2-2b": (63.2, None, None),
    "gemma-2-9b": (76.7, 71.9, None), "gemma-2-27b": (90.4, 79.9, None),
    "gemma-3-1b": (62.8, 38.4, None), "gemma-3-4b": (89.2, 67.3, None),
    "gemma-3-12b": (94.4, 79.2, None), "gemma-3-27b": (95.9, 81.1, None),
    # Microsoft's Phi cards, the Llama 3 paper and EvalPlus' table. Names such as mistral-large mean
    # several models, so they have no entry.
    "mistral-7b": (46.4, None, 40.0), "mistral-nemo": (84.2, 65.8, None),
    "mixtral-8x22b": (88.2, None, 71.6),
    # Microsoft's cards, the Qwen2.5 report (3.5) and EvalPlus' table. Code of 4 and 4 mini is from
    # memory.
    "phi-2": (None, None, 53.2), "phi-3-mini": (85.7, None, 61.0),
    "phi-3-small": (87.3, 64.7, None), "phi-3.5-mini": (86.2, 67.9, None),
    "phi-4-mini": (88.6, 69.9, None), "phi-4": (None, 82.6, None),
    # Qwen3 report (V3's base model), AMD's measurements (R1), EvalPlus' table
    "deepseek-v3": (87.6, None, 84.7), "deepseek-r1": (94.9, None, None),
    # SmolLM2's card: HumanEval as others quote it, GSM8K from memory
    "smollm2-1.7b": (48.2, 28.1, None),
    # Phi-3's card (3.5), Claude 3's card (4), the Llama 3 paper (4o), Phi-4 mini's card (4o mini),
    # EvalPlus' table
    "gpt-3.5-turbo": (78.1, None, 74.9), "gpt-4": (92.0, None, None), "gpt-4o": (96.1, None, 84.9),
    "gpt-4o-mini": (91.3, None, 82.4), "command-r-plus": (None, None, 64.6),
    # Claude 3's card, the Llama 3 paper (3.5 Sonnet), EvalPlus' table
    "claude-3-haiku": (88.9, None, 73.7), "claude-3-sonnet": (92.3, None, 71.9),
    "claude-3-opus": (95.0, None, 80.8), "claude-3-5-sonnet": (96.4, None, 83.2),
}  # fmt: skip
# RULER's accuracy at 4,096 tokens in percent, from the table in the README of NVIDIA/RULER, commit
# c3f5e3b4 (2026-07-22), Qwen3 without thinking. Above 96.5, scores no longer distinguish the largest
# models from the best ones of 8B.
_RULER: dict[str, float] = {
    "llama-2-7b": 85.6, "llama-3.1-8b": 95.5, "llama-3.1-70b": 96.5, "qwen2-72b": 96.9,
    "qwen3-4b": 95.1, "qwen3-8b": 96.3, "qwen3-14b": 98.0, "qwen3-30b": 96.5, "qwen3-32b": 98.4,
    "qwen3-235b": 97.7, "mistral-7b": 93.6, "mistral-nemo": 87.8, "mixtral-8x22b": 95.6,
    "command-r": 93.8, "command-r-plus": 95.6, "phi-3-mini": 92.2, "phi-3-medium": 93.3,
    "yi-34b": 93.3,
}  # fmt: skip
# Vectara's hallucination leaderboard: the percent of summaries without an invention, and the percent
# of texts that were summarised at all. From the README of vectara/hallucination-leaderboard, commit
# 2e098592 (2026-03-10).
_VECTARA: dict[str, tuple[float, float]] = {
    "llama-3.3-70b": (95.9, 99.5), "llama-4-scout": (92.3, 99.0), "llama-4-maverick": (91.8, 100.0),
    "qwen3-4b": (94.3, 99.9), "qwen3-8b": (95.2, 99.9), "qwen3-14b": (94.6, 99.9),
    "qwen3-32b": (94.1, 99.9), "qwen3-235b": (90.7, 94.9), "gemma-3-4b": (93.6, 67.3),
    "gemma-3-12b": (95.6, 97.4), "gemma-3-27b": (92.6, 98.8), "phi-4": (96.3, 80.7),
    "phi-4-mini": (76.5, 92.5), "ministral-3b": (92.7, 99.9), "ministral-8b": (92.6, 99.9),
    "granite-3.3-8b": (89.4, 100.0), "deepseek-v3": (93.9, 97.5), "deepseek-r1": (88.7, 97.0),
    "command-r-plus": (93.1, 95.0), "gpt-4o": (90.4, 93.8), "gpt-oss-120b": (85.8, 99.9),
    "claude-haiku-4-5": (90.2, 99.5),
}  # fmt: skip
# Models with scores that could not be compared with a public copy on `abilities.TABLE_DATE`.
UNVERIFIED_MODELS = frozenset({"phi-4", "phi-4-mini", "smollm2-1.7b"})


def iterate_kind_scores(table_name: str) -> Iterator[tuple[str, float, str]]:
    """Yield the kinds of request in which a model has a score.

    Args:
        table_name: the model's name in the tables of scores.

    Yields:
        The kind, the ability in logits, and the score as text for people.
    """
    gsm8k, mean_score, evalplus = _SCORES.get(table_name, (None, None, None))
    if gsm8k is not None:
        yield (
            "mathematics",
            _GSM8K_DIFFICULTY + _FLATTENING * (_logit(gsm8k) - _PUBLICATION_BIAS),
            f"GSM8K {gsm8k:g} %",
        )
    if evalplus is not None:
        yield "code", _CODE_DIFFICULTY + _FLATTENING * _logit(evalplus), f"EvalPlus {evalplus:g} %"
    elif mean_score is not None:
        yield (
            "code",
            _CODE_DIFFICULTY + _FLATTENING * (_logit(mean_score) - _PUBLICATION_BIAS),
            f"HumanEval and MBPP {mean_score:g} %",
        )
    if (ruler := _RULER.get(table_name)) is not None:
        mean = _READING_DIFFICULTY + _TEXT_FLATTENING * (_logit(ruler) - _PUBLICATION_BIAS)
        yield "extraction", mean, f"RULER {ruler:g} %"
    if (vectara := _VECTARA.get(table_name)) is not None:
        faithful_share = vectara[0] * vectara[1] / 100
        mean = _SUMMARY_DIFFICULTY + _TEXT_FLATTENING * (_logit(faithful_share) - _PUBLICATION_BIAS)
        yield "summary", mean, f"Vectara {faithful_share:.1f} %"


def _logit(percent: float) -> float:
    return math.log(percent / (100 - percent))
