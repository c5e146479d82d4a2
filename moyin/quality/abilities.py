"""Abilities of known models, on one scale, before any signal was seen.

An ability is a number of logits. A model of ability ``a`` answers a request of difficulty ``d``
well with probability ``logistic(a - d)``; a middling question of an exam has difficulty 1.6.

Levels of open models come from the MMLU scores of their model cards, which is the one public test
that was published for nearly all of them. MMLU has four choices, so a quarter of the questions is
won by guessing: ``known = (score - 0.25) / 0.75``. The ability is ``1.6 * logit(known) + 1.0``. The
scale was set on the public RouteLLM tables: it makes one difficulty fit both of their models on
GSM8K and on MMLU (docs/quality.md). MMLU is exhausted above some 85 %, and current Claude models
are not measured on it, so these have levels by the order in which their vendor lists them, with a
wider spread.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["TABLE_DATE", "UNKNOWN", "Ability", "ability_from", "ability_of", "plain_name"]

# The day on which the table below was written. Copies of the cards and reports of Llama 3.1, 3.2 and 4,
# Qwen3, Gemma 3, Phi-4 and gpt-oss-120b were compared with it that day. The other figures are as they
# were remembered: compare one with its card before much depends on it.
TABLE_DATE = "2026-11-27"

_CARD_SPREAD = 0.6  # a model card's MMLU predicts other work about this well
_RANK_SPREAD = 0.7  # the vendor's order says who is better, not by how much
_SIZE_SPREAD = 1.0  # models of one size differ by years of progress
_TIER_SPREAD = 1.0  # the operator knows the model, but chose one of a few steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Ability:
    """A model's ability in logits.

    Attributes:
        spread: standard deviation of what is known about ``mean``.
        source: where the number comes from, for people.
        basis: ``table``, ``configuration`` or ``unknown``.
    """

    mean: float
    spread: float
    source: str
    basis: str = "table"


# A model that nothing is known of: as good as a small model, give or take nearly everything.
UNKNOWN = Ability(mean=0.5, spread=2.0, source="nothing is known of this model", basis="unknown")

# MMLU in percent as stated on the model's card or in its technical report, by plain name.
# A name matches the longest entry that begins it at a word's edge.
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
    "gemma-3-1b": 39.9,
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
    # Cohere's cards of Command R and R+ (Open LLM Leaderboard)
    "command-r": 68.2,
    "command-r-plus": 75.7,
    "falcon-7b": 27.8,
    # Claude 3's model card
    "claude-3-haiku": 75.2,
    "claude-3-sonnet": 79.0,
    "claude-3-opus": 86.8,
}

# Logits by rank: the vendor's own line-up, anchored at Claude 3 Opus (86.8 % of MMLU: 3.4).
_RANKED: dict[str, float] = {
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
    # A name without a version is the line as it is now, or an older one.
    "claude-haiku": 4.2,
    "claude-sonnet": 4.8,
    "claude-opus": 5.1,
    "claude-fable": 5.8,
}

# Which size a family's bare name stands for: as Ollama's library resolves it.
_BARE: dict[str, str] = {
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

# Published and stored under names without a hyphen before the version.
_JOINED = re.compile(r"\b(llama|gemma|phi|olmo|granite|small|medium|large)(\d)")
# Regions and vendors before a point, as Amazon Bedrock writes them: us.meta.llama3-1-8b-instruct-v1:0.
_BEDROCK = re.compile(
    r"^(?:(?:us|eu|apac|global|us-gov)\.)?(?:meta|mistral|openai|deepseek|cohere|qwen|google)\."
)
# Packaging that does not change what a model can do, as words between separators.
_PACKAGING = re.compile(
    r"(?<=[-_.])(?:instruct|inst|it|chat|latest|preview|hf|gguf|ggml|mlx|awq|gptq|exl2|bnb|unsloth"
    r"|text|base|v\d+\.\d+|fp\d+|bf16|f16|f32|int[48]|w\d+a\d+|\d+bit|imatrix"
    r"|qat|cloud|maas|ud|i?q\d(?:_[0-9a-z]+)*|20[12]\d{5}|2[3-6](?:0[1-9]|1[0-2]))(?=[-_.]|$)"
)
_QUANTISED = re.compile(r"(?:^|[-_.:])i?q([23])(?:_|$|-|\.)|(?:^|[-_.:])([23])bit")
_SIZE = re.compile(r"(?:^|-)(?:(\d+)x|e)?(\d+(?:\.\d+)?)([bm])(?:-|$)")
_EDGES = re.compile(r"-{2,}")
# Three bits and fewer per weight lose about as much as a model of two thirds of the size.
_COARSE_QUANTISATION = 0.5


def plain_name(model: str) -> str:
    """Return ``model`` without vendor, packaging, quantisation and date; its size stays.

    ``meta-llama/Llama-3.1-8B-Instruct`` and ``llama3.1:8b-instruct-q4_K_M`` are ``llama-3.1-8b``.
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
    name = _JOINED.sub(r"\1-\2", name)
    name = re.sub(r"^(qwen)-(\d)", r"\1\2", name)
    name = _PACKAGING.sub("", name).replace("_", "-")
    return _EDGES.sub("-", name).strip("-.")


@lru_cache(maxsize=1_024)
def ability_of(model: str) -> Ability | None:
    """Return the public level of ``model``; None when neither its name nor its size says anything."""
    name = plain_name(model)
    coarse = _COARSE_QUANTISATION if _QUANTISED.search(model.lower()) else 0.0
    # A bare family's name has no size to choose by, so it is looked up as a whole.
    entry = _longest(_BARE.get(name, name))
    if entry in _RANKED:
        return Ability(
            mean=_RANKED[entry] - coarse,
            spread=_RANK_SPREAD,
            source=f"{entry}, the vendor's line-up on {TABLE_DATE}",
        )
    if entry in _MMLU and not _other_size(entry, name):
        return Ability(
            mean=_level(_MMLU[entry]) - coarse,
            spread=_CARD_SPREAD,
            source=f"{entry}, MMLU {_MMLU[entry]:g} % by its card, table of {TABLE_DATE}",
        )
    if (size := _billions(name)) is not None:
        return Ability(
            mean=_by_size(size) - coarse,
            spread=_SIZE_SPREAD,
            source=f"its size, {size:g} billion parameters",
        )
    return None


def ability_from(quality: int) -> Ability:
    """Return the ability that a configured tier of ``quality`` stands for.

    The shipped configuration gives 0 to a 135M model, 1 to local models of a few billion
    parameters, 2 to Haiku, 3 to Sonnet and 4 to Opus.
    """
    steps = (-2.5, 1.0, 4.2, 4.9, 5.4)
    return Ability(
        mean=steps[min(max(quality, 0), len(steps) - 1)],
        spread=_TIER_SPREAD,
        source=f"quality {quality} in the configuration",
        basis="configuration",
    )


def _level(mmlu: float) -> float:
    """Logits of a score of MMLU in percent, freed of what guessing wins."""
    known = (mmlu / 100 - 0.25) / 0.75
    # Below this, MMLU can't tell a small model from chance.
    known = max(known, 0.05)
    return 1.6 * math.log(known / (1 - known)) + 1.0


def _by_size(billions: float) -> float:
    """Logits of a middling open model of this size: a line through the table above, by magnitude."""
    return min(-0.4 + 0.6 * math.log2(billions), 4.0)


def _billions(name: str) -> float | None:
    match = _SIZE.search(name)
    if match is None:
        return None
    experts, number, unit = match.groups()
    size = float(number) * (1.0 if unit == "b" else 0.001)
    # A mixture knows more than one of its experts and less than a dense model of their sum.
    return size * math.sqrt(float(experts)) if experts else size


def _longest(name: str) -> str:
    """The longest entry that begins ``name`` at a word's edge; the empty string without one."""
    while name:
        if name in _RANKED or name in _MMLU:
            return name
        name = name.rpartition("-")[0]
    return ""


def _other_size(entry: str, name: str) -> bool:
    """Whether ``name`` has a size that ``entry`` does not have: mistral-small may, phi-4 has none."""
    size = _billions(name)
    return size is not None and _billions(entry) not in (None, size)
