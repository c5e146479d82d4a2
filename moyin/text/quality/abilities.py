"""Rates known models on one scale before any signal was seen.

An ability is a number of logits. A model of ability ``a`` answers a request of difficulty ``d``
well with probability ``logistic(a - d)``. A middling exam question has difficulty 1.6.

Levels of open models come from the MMLU scores of their model cards, the one public test that was
published for nearly all of them. MMLU has four choices, so guessing wins a quarter of the
questions: ``known = (score - 0.25) / 0.75``. The ability is ``1.6 * logit(known) + 1.0``. The scale
was fitted on the public RouteLLM tables, so that one difficulty fits both of their models on GSM8K
and on MMLU (docs/quality.md). MMLU is saturated above some 85 %, and current Claude models are not
measured on it. Their levels follow the order in which their vendor lists them, with a wider spread.

Where a model's scores in a kind of work are public, it has a separate ability for that kind
(`moyin.text.quality.benchmark_scores`), with a smaller spread. Claude models after 3.5 Sonnet, the
last one measured on the same benchmarks, are rated above it by their distance in the line-up.
Comparing a measured local model with an unmeasured Claude would favour the local one. The ability
for reasoning lies half-way between the general one and that of mathematics, because a question
after a story is often arithmetic. Those for extraction and summaries lie half-way to the scores of
tests with given texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from moyin.text.quality.benchmark_scores import UNVERIFIED, kind_scores

__all__ = ["TABLE_DATE", "UNKNOWN", "Ability", "ability_from", "ability_of", "plain_name"]

# The day on which the table below was written. These were compared with public copies that day:
# - instructed models of Llama 3, 3.1, 3.2 and 3.3 (Meta's cards), Gemma 3 (its report, as others quote
#   it) and Claude 3 (its card, also for GPT-3.5 and 4), DeepSeek V3, Phi-4 and gpt-oss-120b;
# - base models of Llama 4, Qwen2.5 and Qwen3, whose reports have no MMLU for the instructed ones.
# Other figures were written from memory, the least certain with a wider spread. Compare one with its
# card before much depends on it.
TABLE_DATE = "2026-11-27"

_CARD_SPREAD = 0.6  # error of predicting other work from a model card's MMLU
_UNVERIFIED_SPREAD = 0.8  # the same for scores written from memory
# A score in one kind predicts work of that kind better, although benchmarks are short exercises. With
# 0.4 the simulated month (docs/quality.md) trusts local models too long.
_KIND_SPREAD = 0.5
_UNVERIFIED_KIND_SPREAD = 0.6
_RANK_SPREAD = 0.7  # the vendor's order shows which model is better, not by how much
_SIZE_SPREAD = 1.0  # models of one size differ by years of progress
_TIER_SPREAD = 1.0  # the operator knows the model, but chose one of a few steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Ability:
    """Holds a model's ability in logits.

    Attributes:
        spread: standard deviation of ``mean``.
        source: where the number comes from, as text for people.
        basis: ``table``, ``configuration`` or ``unknown``.
        kinds: separate abilities for kinds of request in which the model was measured.
    """

    mean: float
    spread: float
    source: str
    basis: str = "table"
    kinds: Mapping[str, Ability] = field(default_factory=dict, hash=False)


# An unknown model is rated as a small one, with a very wide spread.
UNKNOWN = Ability(mean=0.5, spread=2.0, source="nothing is known of this model", basis="unknown")

# MMLU in percent as stated on the model's card or in its technical report, by plain name.
# A name matches the longest entry that it starts with, cut at a hyphen.
_MMLU: dict[str, float] = {
    # SmolLM2 card and paper (cloze form), SmolLM3 card
    "smollm-135m": 30.2,
    "smollm-360m": 34.2,
    "smollm-1.7b": 39.3,
    "smollm2-135m": 31.5,
    "smollm2-360m": 35.8,
    "smollm2-1.7b": 50.4,
    "smollm3-3b": 64.0,
    # Meta's Llama cards
    "llama-2-7b": 45.3,
    "llama-2-13b": 54.8,
    "llama-2-70b": 68.9,
    "llama-3-8b": 68.4,
    "llama-3-70b": 82.0,
    "llama-3.1-8b": 69.4,
    "llama-3.1-70b": 83.6,
    "llama-3.1-405b": 87.3,
    "llama-3.2-1b": 49.3,
    "llama-3.2-3b": 63.4,
    "llama-3.3-70b": 86.0,
    "llama-4-scout": 79.6,
    "llama-4-maverick": 85.5,
    # Qwen technical reports
    "qwen2-0.5b": 45.4,
    "qwen2-1.5b": 56.5,
    "qwen2-7b": 70.5,
    "qwen2-72b": 82.3,
    "qwen2.5-0.5b": 47.5,
    "qwen2.5-1.5b": 60.9,
    "qwen2.5-3b": 65.6,
    "qwen2.5-7b": 74.2,
    "qwen2.5-14b": 79.7,
    "qwen2.5-32b": 83.3,
    "qwen2.5-72b": 86.1,
    "qwen3-0.6b": 52.8,
    "qwen3-1.7b": 62.6,
    "qwen3-4b": 73.0,
    "qwen3-8b": 76.9,
    "qwen3-14b": 81.1,
    "qwen3-30b": 81.4,
    "qwen3-32b": 83.6,
    "qwen3-235b": 87.8,
    # Gemma reports; Gemma 3 as its report has it for the instructed models
    "gemma-2b": 42.3,
    "gemma-7b": 64.3,
    "gemma-2-2b": 51.3,
    "gemma-2-9b": 71.3,
    "gemma-2-27b": 75.2,
    "gemma-3-270m": 32.0,
    "gemma-3-1b": 38.8,
    "gemma-3-4b": 58.1,
    "gemma-3-12b": 71.9,
    "gemma-3-27b": 76.9,
    # Mistral's announcements
    "mistral-7b": 60.1,
    "mistral-nemo": 68.0,
    "mistral-small": 81.0,
    "mistral-medium": 84.0,
    "mistral-large": 84.0,
    "mixtral-8x7b": 70.6,
    "mixtral-8x22b": 77.8,
    "ministral-3b": 60.9,
    "ministral-8b": 65.0,
    # Microsoft's Phi reports
    "phi-2": 56.7,
    "phi-3-mini": 68.8,
    "phi-3-small": 75.7,
    "phi-3-medium": 78.0,
    "phi-3.5-mini": 69.0,
    "phi-4-mini": 67.3,
    "phi-4": 84.8,
    # DeepSeek reports
    "deepseek-v2": 78.5,
    "deepseek-v3": 88.5,
    "deepseek-r1": 90.8,
    "deepseek-r1-distill-qwen-1.5b": 48.0,
    "deepseek-r1-distill-qwen-7b": 70.0,
    "deepseek-r1-distill-llama-8b": 68.0,
    "deepseek-r1-distill-qwen-14b": 79.0,
    "deepseek-r1-distill-qwen-32b": 83.0,
    "deepseek-r1-distill-llama-70b": 85.0,
    # The distilled models again, as Ollama calls them
    "deepseek-r1-1.5b": 48.0,
    "deepseek-r1-7b": 70.0,
    "deepseek-r1-8b": 68.0,
    "deepseek-r1-14b": 79.0,
    "deepseek-r1-32b": 83.0,
    "deepseek-r1-70b": 85.0,
    # OpenAI: gpt-oss card, GPT-4 report; turbo as in the RouteLLM tables
    "gpt-oss-20b": 85.3,
    "gpt-oss-120b": 90.0,
    "gpt-3.5-turbo": 70.0,
    "gpt-4": 86.4,
    "gpt-4-1106": 81.0,
    "gpt-4o": 88.7,
    "gpt-4o-mini": 82.0,
    # Others' cards
    "tinyllama-1.1b": 25.9,
    "stablelm-2-1.6b": 38.9,
    "olmo-2-7b": 63.7,
    "olmo-2-13b": 67.5,
    "granite-3.3-2b": 55.9,
    "granite-3.3-8b": 65.5,
    "yi-34b": 76.3,
    # Cohere's Command R and R+ on the Open LLM Leaderboard
    "command-r": 68.2,
    "command-r-plus": 75.7,
    "falcon-7b": 27.8,
    # Claude 3's model card
    "claude-3-haiku": 75.2,
    "claude-3-sonnet": 79.0,
    "claude-3-opus": 86.8,
}

# Families whose scores above were not compared with a card: from memory, or rounded.
_UNVERIFIED_FAMILIES = re.compile(
    r"(?:command-r|deepseek-r1-|deepseek-v2|falcon|granite|ministral|mistral-[sml]|olmo|stablelm|tinyllama|yi-)"
)

# Logits by rank: the vendor's own line-up, anchored at Claude 3 Opus (86.8 % of MMLU: 3.4).
_RANKS: dict[str, float] = {
    "claude-3-5-haiku": 3.2,
    "claude-3-5-sonnet": 3.9,
    "claude-3-7-sonnet": 4.1,
    "claude-haiku-4": 4.1,
    "claude-haiku-4-5": 4.2,
    "claude-sonnet-4": 4.4,
    "claude-sonnet-4-5": 4.7,
    "claude-opus-4": 4.7,
    "claude-opus-4-1": 4.8,
    "claude-opus-4-5": 5.1,
    "claude-haiku-5": 4.5,
    "claude-haiku-5-5": 4.6,
    "claude-sonnet-5": 5.1,
    "claude-sonnet-5-5": 5.2,
    "claude-opus-5": 5.5,
    "claude-opus-5-5": 5.6,
    "claude-fable-5": 5.8,
    "claude-fable-5-1": 5.9,
    # A name without a version may be any model of the line.
    "claude-haiku": 4.2,
    "claude-sonnet": 4.8,
    "claude-opus": 5.1,
    "claude-fable": 5.8,
}

# The last Claude models measured with the same benchmarks as open models: one in mathematics and code,
# one in summaries (there the best of its generation).
_LAST_MEASURED = ("claude-3-5-sonnet", "claude-haiku-4-5")
# A good answer of these kinds needs more than the benchmarks test (see `benchmark_scores`).
_HALF_WAY_KINDS = frozenset({"reasoning", "extraction", "summary"})

# The default size of a family's name, as in Ollama's library.
_DEFAULT_SIZES: dict[str, str] = {
    "smollm": "smollm-1.7b",
    "smollm2": "smollm2-1.7b",
    "smollm3": "smollm3-3b",
    "llama-2": "llama-2-7b",
    "llama-3": "llama-3-8b",
    "llama-3.1": "llama-3.1-8b",
    "llama-3.2": "llama-3.2-3b",
    "llama-3.3": "llama-3.3-70b",
    "llama-4": "llama-4-scout",
    "qwen2": "qwen2-7b",
    "qwen2.5": "qwen2.5-7b",
    "qwen3": "qwen3-8b",
    "gemma": "gemma-7b",
    "gemma-2": "gemma-2-9b",
    "gemma-3": "gemma-3-4b",
    "mistral": "mistral-7b",
    "mixtral": "mixtral-8x7b",
    "phi": "phi-2",
    "phi-3": "phi-3-mini",
    "phi-3.5": "phi-3.5-mini",
    "gpt-oss": "gpt-oss-20b",
    "deepseek-r1": "deepseek-r1-7b",
    "tinyllama": "tinyllama-1.1b",
}

# Names that are also written without a hyphen before the version.
_JOINED_VERSION = re.compile(r"\b(llama|gemma|phi|olmo|granite|small|medium|large)(\d)")
# Regions and vendors before a point, as Amazon Bedrock writes them: us.meta.llama3-1-8b-instruct-v1:0.
_BEDROCK = re.compile(
    r"^(?:(?:us|eu|apac|global|us-gov)\.)?(?:meta|mistral|openai|deepseek|cohere|qwen|google)\."
)
# Words between separators that describe packaging, which does not change the ability.
_PACKAGING = re.compile(
    r"(?<=[-_.])(?:instruct|inst|it|chat|latest|preview|hf|gguf|ggml|mlx|awq|gptq|exl2|bnb|unsloth"
    r"|text|base|v\d+\.\d+|fp\d+|bf16|f16|f32|int[48]|w\d+a\d+|\d+bit|imatrix"
    r"|qat|cloud|maas|ud|i?q\d(?:_[0-9a-z]+)*|20[12]\d{5}|2[3-6](?:0[1-9]|1[0-2]))(?=[-_.]|$)"
)
_LOW_BIT = re.compile(r"(?:^|[-_.:])i?q([23])(?:_|$|-|\.)|(?:^|[-_.:])([23])bit")
_SIZE = re.compile(r"(?:^|-)(?:(\d+)x|e)?(\d+(?:\.\d+)?)([bm])(?:-|$)")
_HYPHENS = re.compile(r"-{2,}")
# Three bits and fewer per weight lose about as much as a model of two thirds of the size.
_LOW_BIT_LOSS = 0.5


def plain_name(model: str) -> str:
    """Return ``model`` without vendor, packaging, quantisation and date; its size stays.

    ``meta-llama/Llama-3.1-8B-Instruct`` and ``llama3.1:8b-instruct-q4_K_M`` become
    ``llama-3.1-8b``.
    """
    name = model.lower().rsplit("/", 1)[-1]
    if "claude" in name:  # Bedrock's and Vertex' names: us.anthropic.claude-…-v1:0, claude-…@2025…
        name = name[name.index("claude") :].split("@", 1)[0].replace(".", "-")
        name = re.sub(r"-v\d+(:\d+)?$", "", name)
    if _BEDROCK.match(name):
        name = re.sub(r"(?:-v\d+)?(?::\d+|-\d+:\d+)$", "", _BEDROCK.sub("", name))
        name = re.sub(r"^(llama\d)-(\d)(?=-)", r"\1.\2", name)
        name = re.sub(r"^r1", "deepseek-r1-671b", name)  # not the distilled ones
    name = name.replace(":", "-").replace("@", "-").removesuffix(".gguf")
    name = name.removeprefix("c4ai-")
    name = name.removeprefix("meta-").replace("llama-v", "llama-")
    name = _JOINED_VERSION.sub(r"\1-\2", name)
    name = re.sub(r"^(qwen)-(\d)", r"\1\2", name)
    name = _PACKAGING.sub("", name).replace("_", "-")
    return _HYPHENS.sub("-", name).strip("-.")


@lru_cache(maxsize=1_024)
def ability_of(model: str) -> Ability | None:
    """Return the public level of ``model``; None if neither name nor size is known."""
    name = plain_name(model)
    quantisation_loss = _LOW_BIT_LOSS if _LOW_BIT.search(model.lower()) else 0.0
    # A family's name without a size stands for its default size.
    entry = _longest_entry(_DEFAULT_SIZES.get(name, name))
    if entry in _RANKS:
        mean = _RANKS[entry] - quantisation_loss
        return Ability(
            mean=mean,
            spread=_RANK_SPREAD,
            source=f"{entry}, the vendor's line-up on {TABLE_DATE}",
            kinds=_ranked_kinds(entry, mean),
        )
    if entry in _MMLU and not _has_other_size(entry, name):
        mean = _logits_of_mmlu(_MMLU[entry]) - quantisation_loss
        is_unverified = _UNVERIFIED_FAMILIES.match(entry)
        origin = "as remembered" if is_unverified else "by its card"
        spread = _UNVERIFIED_SPREAD if is_unverified else _CARD_SPREAD
        return Ability(
            mean=mean,
            spread=spread,
            source=f"{entry}, MMLU {_MMLU[entry]:g} % {origin}, table of {TABLE_DATE}",
            kinds=_measured_kinds(entry, mean, spread, quantisation_loss),
        )
    if (size := _billions(name)) is not None:
        return Ability(
            mean=_logits_of_size(size) - quantisation_loss,
            spread=_SIZE_SPREAD,
            source=f"its size, {size:g} billion parameters",
        )
    return None


def ability_from(quality: int) -> Ability:
    """Return the ability for a configured tier of ``quality``.

    The shipped configuration gives 0 to a 135M model, 1 to local models of a few billion
    parameters, 2 to Haiku, 3 to Sonnet and 4 to Opus.
    """
    levels = (-2.5, 1.0, 4.2, 4.9, 5.4)
    return Ability(
        mean=levels[min(max(quality, 0), len(levels) - 1)],
        spread=_TIER_SPREAD,
        source=f"quality {quality} in the configuration",
        basis="configuration",
    )


def _measured_kinds(
    entry: str, general: float, general_spread: float, quantisation_loss: float
) -> dict[str, Ability]:
    """Return the abilities of the kinds in which ``entry`` was measured."""
    spread = _UNVERIFIED_KIND_SPREAD if entry in UNVERIFIED else _KIND_SPREAD
    return _blend_kinds(
        {
            kind: Ability(
                mean=mean - quantisation_loss,
                spread=spread,
                source=f"{entry}, {score}, table of {TABLE_DATE}",
            )
            for kind, mean, score in kind_scores(entry)
        },
        general,
        general_spread,
    )


def _ranked_kinds(entry: str, general: float) -> dict[str, Ability]:
    """Return the abilities of the kinds in which a model of the same line was measured."""
    return _blend_kinds(
        {
            kind: Ability(
                mean=mean + general - _RANKS[measured],
                spread=_RANK_SPREAD,
                source=f"{entry}, {score} of {measured} and the line-up on {TABLE_DATE}",
            )
            for measured in _LAST_MEASURED
            for kind, mean, score in kind_scores(measured)
        },
        general,
        _RANK_SPREAD,
    )


def _blend_kinds(kinds: dict[str, Ability], general: float, spread: float) -> dict[str, Ability]:
    """Add reasoning to the kinds, and move some half-way to the general ability."""
    if (ability := kinds.get("mathematics")) is not None:
        kinds["reasoning"] = ability
    return {
        kind: Ability(
            mean=(general + ability.mean) / 2,
            spread=spread,
            source=f"half-way between MMLU or rank and {ability.source}",
        )
        if kind in _HALF_WAY_KINDS
        else ability
        for kind, ability in kinds.items()
    }


def _logits_of_mmlu(mmlu: float) -> float:
    """Return the logits of an MMLU score in percent, corrected for guessing."""
    known = (mmlu / 100 - 0.25) / 0.75
    # Below this, MMLU cannot distinguish a small model from chance.
    known = max(known, 0.05)
    return 1.6 * math.log(known / (1 - known)) + 1.0


def _logits_of_size(billions: float) -> float:
    """Return the logits of a typical open model of this size, from a line fitted to the table."""
    return min(-0.4 + 0.6 * math.log2(billions), 4.0)


def _billions(name: str) -> float | None:
    match = _SIZE.search(name)
    if match is None:
        return None
    experts, number, unit = match.groups()
    size = float(number) * (1.0 if unit == "b" else 0.001)
    # A mixture is better than one of its experts and worse than a dense model of their total size.
    return size * math.sqrt(float(experts)) if experts else size


def _longest_entry(name: str) -> str:
    """Return the longest entry that ``name`` starts with, cut at a hyphen; else an empty string."""
    while name:
        if name in _RANKS or name in _MMLU:
            return name
        name = name.rpartition("-")[0]
    return ""


def _has_other_size(entry: str, name: str) -> bool:
    """Return whether ``name`` states a size that differs from that of ``entry``."""
    size = _billions(name)
    return size is not None and _billions(entry) not in (None, size)
