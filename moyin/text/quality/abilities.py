"""Estimates the abilities of known models on one scale, before any signal from tenants.

An ability is a number of logits. A model of ability ``a`` answers a request of difficulty ``d``
well with probability ``logistic(a - d)``. An average exam question has difficulty 1.6.

The abilities of open models come from the MMLU scores of their model cards, because MMLU is the
only public test with scores for nearly all of them. It has four choices, so a quarter of the
questions can be guessed: ``known = (score - 0.25) / 0.75``. The ability is ``1.6 * logit(known) +
1.0``. The scale was fitted on RouteLLM's public tables, so that a single difficulty for each test
fits the scores of two models on GSM8K and on MMLU (docs/quality.md).

MMLU does not distinguish models above about 85 %, and there are no scores of current Claude models.
Their abilities follow the vendor's ranking, and have a larger standard deviation.

A model with public scores in a kind of request has a separate ability for that kind
(`moyin.text.quality.benchmark_scores`), with a smaller standard deviation. Claude 3.5 Sonnet is the
last Claude with such scores. Later Claude models get its abilities plus their distance from it in
the ranking. Otherwise a local model with scores would seem better than a Claude without scores.

For reasoning, extraction and summary, the ability is the mean of the general ability and a special
one. The special ability for reasoning is that for mathematics, because questions of reasoning tests
are often arithmetic. Those for extraction and summary come from tests of reading given texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from moyin.text.quality.benchmark_scores import UNVERIFIED_MODELS, iterate_kind_scores

# The day on which _MMLU was written. These scores were compared with public copies on that day:
# - instructed models of Llama 3, 3.1, 3.2 and 3.3 (Meta's cards), Gemma 3 (its report, as others quote
#   it) and Claude 3 (its card, also for GPT-3.5 and 4), DeepSeek V3, Phi-4 and gpt-oss-120b;
# - base models of Llama 4, Qwen2.5 and Qwen3, whose reports have no MMLU for the instructed ones.
# Other figures were written from memory, the least certain with a wider spread. Compare one with its
# card before much depends on it.
TABLE_DATE = "2026-11-27"

_CARD_SPREAD = 0.6  # logits: error of predicting real work from the MMLU score of a model card
_UNVERIFIED_SPREAD = 0.8  # the same error for MMLU scores that were written from memory
# The error of predicting work of a kind from a score in that kind. With 0.4, the simulated month of
# docs/quality.md overrates local models for too long.
_KIND_SPREAD = 0.5
_UNVERIFIED_KIND_SPREAD = 0.6
_RANK_SPREAD = 0.7  # the vendor's ranking does not show by how much a model is better
_SIZE_SPREAD = 1.0  # models of one size differ by years of progress
_TIER_SPREAD = 1.0  # the operator chose one of only five tiers


@dataclass(frozen=True, kw_only=True, slots=True)
class Ability:
    """A model's ability before any signal.

    Attributes:
        mean: the expected ability in logits.
        spread: the standard deviation of ``mean``.
        source: the source of the number, as a text for people.
        basis: ``table`` (public scores), ``configuration`` or ``unknown``.
        kinds: separate abilities for the kinds of request in which the model has public scores.
    """

    mean: float
    spread: float
    source: str
    basis: str = "table"
    kinds: Mapping[str, Ability] = field(default_factory=dict, hash=False)


# The ability of an unknown model is that of a small one, with a very wide spread.
UNKNOWN_ABILITY = Ability(
    mean=0.5, spread=2.0, source="nothing is known of this model", basis="unknown"
)

# MMLU scores in percent from model cards or technical reports, by the result of
# `normalize_model_name`. A name matches the longest entry that is its beginning up to a hyphen.
_MMLU: dict[str, float] = {
    # SmolLM2 card and paper (cloze form), SmolLM3 card
    "smollm-135m": 30.2, "smollm-360m": 34.2, "smollm-1.7b": 39.3, "smollm2-135m": 31.5,
    "smollm2-360m": 35.8, "smollm2-1.7b": 50.4, "smollm3-3b": 64.0,
    # Meta's Llama cards
    "llama-2-7b": 45.3, "llama-2-13b": 54.8, "llama-2-70b": 68.9, "llama-3-8b": 68.4,
    "llama-3-70b": 82.0, "llama-3.1-8b": 69.4, "llama-3.1-70b": 83.6, "llama-3.1-405b": 87.3,
    "llama-3.2-1b": 49.3, "llama-3.2-3b": 63.4, "llama-3.3-70b": 86.0, "llama-4-scout": 79.6,
    "llama-4-maverick": 85.5,
    # Qwen technical reports
    "qwen2-0.5b": 45.4, "qwen2-1.5b": 56.5, "qwen2-7b": 70.5, "qwen2-72b": 82.3,
    "qwen2.5-0.5b": 47.5, "qwen2.5-1.5b": 60.9, "qwen2.5-3b": 65.6, "qwen2.5-7b": 74.2,
    "qwen2.5-14b": 79.7, "qwen2.5-32b": 83.3, "qwen2.5-72b": 86.1, "qwen3-0.6b": 52.8,
    "qwen3-1.7b": 62.6, "qwen3-4b": 73.0, "qwen3-8b": 76.9, "qwen3-14b": 81.1, "qwen3-30b": 81.4,
    "qwen3-32b": 83.6, "qwen3-235b": 87.8,
    # Gemma reports; Gemma 3 as its report has it for the instructed models
    "gemma-2b": 42.3, "gemma-7b": 64.3, "gemma-2-2b": 51.3, "gemma-2-9b": 71.3, "gemma-2-27b": 75.2,
    "gemma-3-270m": 32.0, "gemma-3-1b": 38.8, "gemma-3-4b": 58.1, "gemma-3-12b": 71.9,
    "gemma-3-27b": 76.9,
    # Mistral's announcements
    "mistral-7b": 60.1, "mistral-nemo": 68.0, "mistral-small": 81.0, "mistral-medium": 84.0,
    "mistral-large": 84.0, "mixtral-8x7b": 70.6, "mixtral-8x22b": 77.8, "ministral-3b": 60.9,
    "ministral-8b": 65.0,
    # Microsoft's Phi reports
    "phi-2": 56.7, "phi-3-mini": 68.8, "phi-3-small": 75.7, "phi-3-medium": 78.0,
    "phi-3.5-mini": 69.0, "phi-4-mini": 67.3, "phi-4": 84.8,
    # DeepSeek reports
    "deepseek-v2": 78.5, "deepseek-v3": 88.5, "deepseek-r1": 90.8,
    "deepseek-r1-distill-qwen-1.5b": 48.0, "deepseek-r1-distill-qwen-7b": 70.0,
    "deepseek-r1-distill-llama-8b": 68.0, "deepseek-r1-distill-qwen-14b": 79.0,
    "deepseek-r1-distill-qwen-32b": 83.0, "deepseek-r1-distill-llama-70b": 85.0,
    # The distilled models again, as Ollama calls them
    "deepseek-r1-1.5b": 48.0, "deepseek-r1-7b": 70.0, "deepseek-r1-8b": 68.0,
    "deepseek-r1-14b": 79.0, "deepseek-r1-32b": 83.0, "deepseek-r1-70b": 85.0,
    # OpenAI: gpt-oss card, GPT-4 report; turbo as in the RouteLLM tables
    "gpt-oss-20b": 85.3, "gpt-oss-120b": 90.0, "gpt-3.5-turbo": 70.0, "gpt-4": 86.4,
    "gpt-4-1106": 81.0, "gpt-4o": 88.7, "gpt-4o-mini": 82.0,
    # Cards of other vendors
    "tinyllama-1.1b": 25.9, "stablelm-2-1.6b": 38.9, "olmo-2-7b": 63.7, "olmo-2-13b": 67.5,
    "granite-3.3-2b": 55.9, "granite-3.3-8b": 65.5, "yi-34b": 76.3,
    # Cohere's Command R and R+ on the Open LLM Leaderboard
    "command-r": 68.2, "command-r-plus": 75.7, "falcon-7b": 27.8,
    # Claude 3's model card
    "claude-3-haiku": 75.2, "claude-3-sonnet": 79.0, "claude-3-opus": 86.8,
}  # fmt: skip

# Model families whose scores in _MMLU were written from memory or rounded, not copied from a card.
_UNVERIFIED_FAMILIES = re.compile(
    r"(?:command-r|deepseek-r1-|deepseek-v2|falcon|granite|ministral|mistral-[sml]|olmo|stablelm|tinyllama|yi-)"
)

# Abilities in logits by the vendor's ranking, relative to Claude 3 Opus (MMLU 86.8 %, so 3.4).
_RANKS: dict[str, float] = {
    "claude-3-5-haiku": 3.2, "claude-3-5-sonnet": 3.9, "claude-3-7-sonnet": 4.1,
    "claude-haiku-4": 4.1, "claude-haiku-4-5": 4.2, "claude-sonnet-4": 4.4,
    "claude-sonnet-4-5": 4.7, "claude-opus-4": 4.7, "claude-opus-4-1": 4.8, "claude-opus-4-5": 5.1,
    "claude-haiku-5": 4.5, "claude-haiku-5-5": 4.6, "claude-sonnet-5": 5.1,
    "claude-sonnet-5-5": 5.2, "claude-opus-5": 5.5, "claude-opus-5-5": 5.6, "claude-fable-5": 5.8,
    "claude-fable-5-1": 5.9,
    # A name without a version may mean any model of its product line.
    "claude-haiku": 4.2, "claude-sonnet": 4.8, "claude-opus": 5.1, "claude-fable": 5.8,
}  # fmt: skip

# The last Claude models with scores in the benchmarks of open models: the first one in mathematics
# and code, the second one in summaries, where it is the best of its generation.
_LAST_MEASURED = ("claude-3-5-sonnet", "claude-haiku-4-5")
# The benchmarks of these kinds test less than a good answer needs (see `benchmark_scores`).
_AVERAGED_KINDS = frozenset({"reasoning", "extraction", "summary"})

# The entry for a family's name without a size, which is the default size in Ollama's library.
_DEFAULT_SIZES: dict[str, str] = {
    "smollm": "smollm-1.7b", "smollm2": "smollm2-1.7b", "smollm3": "smollm3-3b",
    "llama-2": "llama-2-7b", "llama-3": "llama-3-8b", "llama-3.1": "llama-3.1-8b",
    "llama-3.2": "llama-3.2-3b", "llama-3.3": "llama-3.3-70b", "llama-4": "llama-4-scout",
    "qwen2": "qwen2-7b", "qwen2.5": "qwen2.5-7b", "qwen3": "qwen3-8b", "gemma": "gemma-7b",
    "gemma-2": "gemma-2-9b", "gemma-3": "gemma-3-4b", "mistral": "mistral-7b",
    "mixtral": "mixtral-8x7b", "phi": "phi-2", "phi-3": "phi-3-mini", "phi-3.5": "phi-3.5-mini",
    "gpt-oss": "gpt-oss-20b", "deepseek-r1": "deepseek-r1-7b", "tinyllama": "tinyllama-1.1b",
}  # fmt: skip

# Names that are also written without a hyphen before the version.
_JOINED_VERSION_PATTERN = re.compile(r"\b(llama|gemma|phi|olmo|granite|small|medium|large)(\d)")
# Regions and vendors before a point, as Amazon Bedrock writes them: us.meta.llama3-1-8b-instruct-v1:0.
_BEDROCK_PREFIX = re.compile(
    r"^(?:(?:us|eu|apac|global|us-gov)\.)?(?:meta|mistral|openai|deepseek|cohere|qwen|google)\."
)
# Words between separators that describe the packaging, which does not change the ability.
_PACKAGING_PATTERN = re.compile(
    r"(?<=[-_.])(?:instruct|inst|it|chat|latest|preview|hf|gguf|ggml|mlx|awq|gptq|exl2|bnb|unsloth"
    r"|text|base|v\d+\.\d+|fp\d+|bf16|f16|f32|int[48]|w\d+a\d+|\d+bit|imatrix"
    r"|qat|cloud|maas|ud|i?q\d(?:_[0-9a-z]+)*|20[12]\d{5}|2[3-6](?:0[1-9]|1[0-2]))(?=[-_.]|$)"
)
_LOW_BIT_PATTERN = re.compile(r"(?:^|[-_.:])i?q([23])(?:_|$|-|\.)|(?:^|[-_.:])([23])bit")
_SIZE_PATTERN = re.compile(r"(?:^|-)(?:(\d+)x|e)?(\d+(?:\.\d+)?)([bm])(?:-|$)")
_REPEATED_HYPHENS = re.compile(r"-{2,}")
# With three bits or fewer per weight, a model is about as able as one of two thirds of its size.
_LOW_BIT_LOSS = 0.5


def normalize_model_name(model: str) -> str:
    """Return the name of ``model`` without vendor, packaging, quantisation and date.

    ``meta-llama/Llama-3.1-8B-Instruct`` and ``llama3.1:8b-instruct-q4_K_M`` become
    ``llama-3.1-8b``.
    """
    name = model.lower().rsplit("/", 1)[-1]
    if "claude" in name:  # Bedrock's and Vertex' names: us.anthropic.claude-…-v1:0, claude-…@2025…
        name = name[name.index("claude") :].split("@", 1)[0].replace(".", "-")
        name = re.sub(r"-v\d+(:\d+)?$", "", name)
    if _BEDROCK_PREFIX.match(name):
        name = re.sub(r"(?:-v\d+)?(?::\d+|-\d+:\d+)$", "", _BEDROCK_PREFIX.sub("", name))
        name = re.sub(r"^(llama\d)-(\d)(?=-)", r"\1.\2", name)
        name = re.sub(r"^r1", "deepseek-r1-671b", name)  # excludes distilled models
    name = name.replace(":", "-").replace("@", "-").removesuffix(".gguf")
    name = name.removeprefix("c4ai-")
    name = name.removeprefix("meta-").replace("llama-v", "llama-")
    name = _JOINED_VERSION_PATTERN.sub(r"\1-\2", name)
    name = re.sub(r"^(qwen)-(\d)", r"\1\2", name)
    name = _PACKAGING_PATTERN.sub("", name).replace("_", "-")
    return _REPEATED_HYPHENS.sub("-", name).strip("-.")


@lru_cache(maxsize=1_024)
def look_up_ability(model: str) -> Ability | None:
    """Return a model's ability from public scores or from the size in its name; else None."""
    name = normalize_model_name(model)
    quantisation_loss = _LOW_BIT_LOSS if _LOW_BIT_PATTERN.search(model.lower()) else 0.0
    # A family's name without a size means its default size.
    table_name = _find_longest_entry(_DEFAULT_SIZES.get(name, name))
    if table_name in _RANKS:
        mean = _RANKS[table_name] - quantisation_loss
        return Ability(
            mean=mean,
            spread=_RANK_SPREAD,
            source=f"{table_name}, the vendor's line-up on {TABLE_DATE}",
            kinds=_build_ranked_abilities(table_name, mean),
        )
    if table_name in _MMLU and not _states_other_size(table_name, name):
        mean = _convert_mmlu_to_logits(_MMLU[table_name]) - quantisation_loss
        is_unverified = _UNVERIFIED_FAMILIES.match(table_name)
        origin = "from memory" if is_unverified else "by its card"
        spread = _UNVERIFIED_SPREAD if is_unverified else _CARD_SPREAD
        return Ability(
            mean=mean,
            spread=spread,
            source=f"{table_name}, MMLU {_MMLU[table_name]:g} % {origin}, table of {TABLE_DATE}",
            kinds=_build_measured_abilities(table_name, mean, spread, quantisation_loss),
        )
    if (size := _parse_billions(name)) is not None:
        return Ability(
            mean=_convert_size_to_logits(size) - quantisation_loss,
            spread=_SIZE_SPREAD,
            source=f"its size, {size:g} billion parameters",
        )
    return None


def create_tier_ability(quality: int) -> Ability:
    """Create the ability for the setting ``quality`` of a model, a tier from 0 to 4.

    The shipped configuration uses 0 for a model of 135 million parameters, 1 for local models of a
    few billion parameters, 2 for Haiku, 3 for Sonnet and 4 for Opus.
    """
    tier_means = (-2.5, 1.0, 4.2, 4.9, 5.4)
    return Ability(
        mean=tier_means[min(max(quality, 0), len(tier_means) - 1)],
        spread=_TIER_SPREAD,
        source=f"quality {quality} in the configuration",
        basis="configuration",
    )


def _build_measured_abilities(
    table_name: str, general_ability: float, general_spread: float, quantisation_loss: float
) -> dict[str, Ability]:
    """Return a model's abilities by kind of request, for the kinds in which it has public scores.

    Args:
        table_name: the model's name in the table of scores.
        general_ability: its general ability in logits.
        general_spread: the standard deviation of ``general_ability``.
        quantisation_loss: the logits to subtract for a quantised model.
    """
    spread = _UNVERIFIED_KIND_SPREAD if table_name in UNVERIFIED_MODELS else _KIND_SPREAD
    return _blend_abilities(
        {
            kind: Ability(
                mean=mean - quantisation_loss,
                spread=spread,
                source=f"{table_name}, {score}, table of {TABLE_DATE}",
            )
            for kind, mean, score in iterate_kind_scores(table_name)
        },
        general_ability,
        general_spread,
    )


def _build_ranked_abilities(table_name: str, general_ability: float) -> dict[str, Ability]:
    """Return a Claude model's abilities by kind, derived from the last Claude with public scores.

    Args:
        table_name: the model's name in the vendor's ranking.
        general_ability: its general ability in logits.
    """
    return _blend_abilities(
        {
            kind: Ability(
                mean=mean + general_ability - _RANKS[measured_model],
                spread=_RANK_SPREAD,
                source=f"{table_name}, {score} of {measured_model} and the line-up on {TABLE_DATE}",
            )
            for measured_model in _LAST_MEASURED
            for kind, mean, score in iterate_kind_scores(measured_model)
        },
        general_ability,
        _RANK_SPREAD,
    )


def _blend_abilities(
    abilities_by_kind: dict[str, Ability], general_ability: float, spread: float
) -> dict[str, Ability]:
    """Add the ability for reasoning, and average some kinds' abilities with the general ability.

    Args:
        abilities_by_kind: the abilities by kind of request, as public scores show them.
        general_ability: the model's general ability in logits.
        spread: the standard deviation of the averaged abilities.
    """
    if (ability := abilities_by_kind.get("mathematics")) is not None:
        abilities_by_kind["reasoning"] = ability
    return {
        kind: Ability(
            mean=(general_ability + ability.mean) / 2,
            spread=spread,
            source=f"half-way between MMLU or rank and {ability.source}",
        )
        if kind in _AVERAGED_KINDS
        else ability
        for kind, ability in abilities_by_kind.items()
    }


def _convert_mmlu_to_logits(mmlu: float) -> float:
    """Convert an MMLU score in percent to logits, after removing the share of lucky guesses."""
    known_share = (mmlu / 100 - 0.25) / 0.75
    # Lower scores of small models are not distinguishable from chance.
    known_share = max(known_share, 0.05)
    return 1.6 * math.log(known_share / (1 - known_share)) + 1.0


def _convert_size_to_logits(billions: float) -> float:
    """Return the ability of a typical open model with ``billions`` of parameters, in logits."""
    return min(-0.4 + 0.6 * math.log2(billions), 4.0)


def _parse_billions(name: str) -> float | None:
    match = _SIZE_PATTERN.search(name)
    if match is None:
        return None
    experts, number, unit = match.groups()
    size = float(number) * (1.0 if unit == "b" else 0.001)
    # A mixture of experts is better than one expert, but worse than a dense model of its size.
    return size * math.sqrt(float(experts)) if experts else size


def _find_longest_entry(name: str) -> str:
    """Return the longest model name in the tables that ``name`` equals or extends; "" if none.

    An extension begins with a hyphen.
    """
    while name:
        if name in _RANKS or name in _MMLU:
            return name
        name = name.rpartition("-")[0]
    return ""


def _states_other_size(table_name: str, name: str) -> bool:
    """Return True if ``name`` states another number of parameters than ``table_name``."""
    size = _parse_billions(name)
    return size is not None and _parse_billions(table_name) not in (None, size)
