import pytest

from moyin.text.quality.abilities import (
    Ability,
    create_tier_ability,
    look_up_ability,
    normalize_model_name,
)
from moyin.text.quality.estimator import Estimator
from tests.unit.text.quality.questions import make_question


@pytest.mark.parametrize(
    ("model", "plain_name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("llama3.1:8b-instruct-q4_K_M", "llama-3.1-8b"),
        ("SmolLM2-135M-Instruct-Q4_K_M.gguf", "smollm2-135m"),
        ("Qwen/Qwen3-8B-AWQ", "qwen3-8b"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
        ("us.anthropic.claude-haiku-4-5-20251001-v1:0", "claude-haiku-4-5"),
        ("claude-sonnet-4@20250514", "claude-sonnet-4"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("deepseek-v3", "deepseek-v3"),
    ],
)
def test_packaging_is_removed_from_model_names(model: str, plain_name: str) -> None:
    assert normalize_model_name(model) == plain_name


@pytest.mark.parametrize(
    ("model", "source_start"),
    [
        ("hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M", "llama-3.2-3b"),
        ("anthropic.claude-sonnet-4-20250514-v1:0", "claude-sonnet-4"),
        ("qwen3:30b-a3b-instruct-2507-q4_K_M", "qwen3-30b"),
        ("gpt-oss:20b-cloud", "gpt-oss-20b"),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "mistral-small"),
        ("us.anthropic.claude-3-5-sonnet-20241022-v2:0", "claude-3-5-sonnet"),
        ("eu.anthropic.claude-3-haiku-20240307-v1:0", "claude-3-haiku"),
        ("global.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5"),
        ("claude-opus-4-1-20250805", "claude-opus-4-1"),
        ("claude-opus-4-1@20250805", "claude-opus-4-1"),
        ("claude-3-7-sonnet-latest", "claude-3-7-sonnet"),
        ("claude-3-5-haiku@20241022", "claude-3-5-haiku"),
        ("anthropic/claude-3.5-sonnet", "claude-3-5-sonnet"),
        ("anthropic/claude-haiku-4.5", "claude-haiku-4-5"),
        ("meta.llama3-1-8b-instruct-v1:0", "llama-3.1-8b"),
        ("meta.llama3-3-70b-instruct-v1:0", "llama-3.3-70b"),
        ("us.meta.llama4-maverick-17b-instruct-v1:0", "llama-4-maverick"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4-scout"),
        ("meta/llama-3.1-405b-instruct-maas", "llama-3.1-405b"),
        ("llama3.2:1b-instruct-fp16", "llama-3.2-1b"),
        ("llama3.3:70b-instruct-q3_K_M", "llama-3.3-70b"),
        ("meta-llama/Meta-Llama-3-70B-Instruct", "llama-3-70b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("NousResearch/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "llama-3.2-1b"),
        ("mlx-community/Llama-3.2-3B-Instruct-4bit", "llama-3.2-3b"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen2.5-7b"),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", "its size, 32 billion"),
        ("qwen2.5-coder:7b", "its size, 7 billion"),
        ("qwen2.5vl:7b", "its size, 7 billion"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "qwen3-235b"),
        ("Qwen/Qwen3-4B-Thinking-2507", "qwen3-4b"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "its size, 80 billion"),
        ("qwen3-coder:30b", "its size, 30 billion"),
        ("unsloth/Qwen3-14B-GGUF:UD-Q4_K_XL", "qwen3-14b"),
        ("google/gemma-3n-E4B-it", "its size, 4 billion"),
        ("gemma3:27b-it-qat", "gemma-3-27b"),
        ("gemma3:4b-it-q4_K_M", "gemma-3-4b"),
        ("google/gemma-2-9b-it", "gemma-2-9b"),
        ("mistral.mistral-7b-instruct-v0:2", "mistral-7b"),
        ("mistral.mistral-large-2407-v1:0", "mistral-large"),
        ("mistral-small3.1:24b", "mistral-small"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ", "mixtral-8x7b"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo"),
        ("mistralai/Ministral-8B-Instruct-2410", "ministral-8b"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("openai.gpt-oss-20b-1:0", "gpt-oss-20b"),
        ("unsloth/gpt-oss-20b-GGUF:F16", "gpt-oss-20b"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "smollm2-1.7b"),
        ("HuggingFaceTB/SmolLM3-3B", "smollm3-3b"),
        ("microsoft/Phi-4-mini-instruct", "phi-4-mini"),
        ("microsoft/Phi-3.5-mini-instruct", "phi-3.5-mini"),
        ("phi4:14b-q4_K_M", "phi-4"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "deepseek-r1-distill-qwen-32b"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1"),
        ("us.deepseek.r1-v1:0", "deepseek-r1"),
        ("CohereForAI/c4ai-command-r-plus-08-2024", "command-r-plus"),
        ("cohere.command-r-plus-v1:0", "command-r-plus"),
        ("command-r:35b-08-2024-q4_K_M", "command-r"),
        ("command-r7b:7b", "its size, 7 billion"),
        ("ibm-granite/granite-3.3-8b-instruct", "granite-3.3-8b"),
        ("granite3.3:2b", "granite-3.3-2b"),
        ("01-ai/Yi-34B-Chat", "yi-34b"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"),
    ],
)
def test_model_names_of_servers_and_clouds_are_recognized(model: str, source_start: str) -> None:
    ability = look_up_ability(model)
    assert ability is not None
    assert ability.source.startswith(source_start) and ability.source[len(source_start)] in ", "


def test_names_of_one_model_have_one_ability() -> None:
    names = ("llama3.1", "llama3.1:8b", "meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b")
    assert len({look_up_ability(name) for name in names}) == 1


def test_abilities_rise_with_the_size_and_class_of_models() -> None:
    model_names = (
        "smollm2-135m",
        "llama3.2:1b",
        "llama3.1:8b",
        "qwen3:32b",
        "claude-haiku-5-5",
        "claude-sonnet-5-5",
        "claude-opus-5-5",
        "claude-fable-5-1",
    )
    abilities = [look_up_ability(name) for name in model_names]
    means = [ability.mean for ability in abilities if ability is not None]
    assert len(means) == len(model_names)
    assert means == sorted(means)


def test_coarse_quantisation_costs_ability() -> None:
    fine_ability, coarse_ability = (
        look_up_ability("qwen2.5:14b-instruct-q4_K_M"),
        look_up_ability("qwen2.5:14b-instruct-q2_K"),
    )
    assert fine_ability and coarse_ability
    assert coarse_ability.mean < fine_ability.mean


def test_unlisted_model_is_rated_by_its_size_with_a_wider_spread() -> None:
    sized_ability, listed_ability = (
        look_up_ability("studio/our-tune-7b"),
        look_up_ability("mistral:7b"),
    )
    assert sized_ability and listed_ability
    assert sized_ability.spread > listed_ability.spread
    assert "7 billion" in sized_ability.source


def test_size_of_another_family_member_is_not_used() -> None:
    small_ability, large_ability = (
        look_up_ability("llama-3.1-nemotron-4b"),
        look_up_ability("llama-3.1-nemotron-70b"),
    )
    assert small_ability and large_ability
    assert small_ability.mean < large_ability.mean


@pytest.mark.parametrize("model", ["bar", "", "::", "our-secret-model"])
def test_name_without_family_and_size_is_unknown(model: str) -> None:
    assert look_up_ability(model) is None


def test_tiers_rise_and_have_bounds() -> None:
    means = [create_tier_ability(tier).mean for tier in range(5)]
    assert means == sorted(set(means))
    assert create_tier_ability(99) == create_tier_ability(99)
    assert create_tier_ability(-3).mean == means[0]
    assert create_tier_ability(1).basis == "configuration"


# As GSM8K and HumanEval ask: questions of the length and difficulty that the scores belong to.
EXAM = (
    "A baker sells 12 loaves in the morning and twice as many in the afternoon. Each loaf costs 3 "
    "dollars. He then spends a quarter of the total on flour. Calculate the sum that he has left."
)
CODE = '''def longest_run(numbers: list[int], limit: int) -> list[int]:
    """Return the longest run of neighbouring numbers whose sum stays below the limit. If several
    runs are equally long, return the first of them; if every number reaches the limit by itself,
    return an empty list. Numbers may be negative, and the list must not be changed.

    >>> longest_run([1, 2, 3, 4], 7)
    [1, 2, 3]
    >>> longest_run([9, 9], 5)
    []
    """
'''


def look_up_known_ability(model: str) -> Ability:
    ability = look_up_ability(model)
    assert ability is not None
    return ability


@pytest.mark.parametrize(
    ("model", "text", "kind", "score"),
    [
        ("qwen3:8b", EXAM, "mathematics", 0.90),
        ("llama3.1:8b", EXAM, "mathematics", 0.85),
        ("llama3.2:1b", EXAM, "mathematics", 0.44),
        ("claude-3-haiku-20240307", EXAM, "mathematics", 0.89),
        ("qwen3:8b", CODE, "code", 0.68),
        ("qwen2.5:7b", CODE, "code", 0.82),
        ("gemma3:27b", CODE, "code", 0.81),
    ],
)
def test_estimate_equals_the_published_score_minus_its_bias(
    model: str, text: str, kind: str, score: float
) -> None:
    question = make_question(text)
    assert question.kind == kind
    estimate = Estimator().estimate("studio", model, look_up_known_ability(model), question)
    assert score - 0.12 < estimate.p < score + 0.03
    general_mean = look_up_known_ability(model).mean
    assert look_up_known_ability(model).kinds[kind].mean > general_mean


def test_measured_kind_has_a_smaller_spread_and_names_its_source() -> None:
    ability = look_up_known_ability("qwen3:8b")
    for kind, score in (("mathematics", "GSM8K 89.8 %"), ("code", "EvalPlus 67.7 %")):
        assert ability.kinds[kind].spread < ability.spread
        assert ability.kinds[kind].source.startswith(f"qwen3-8b, {score}, table of ")
    assert ability.mean < ability.kinds["reasoning"].mean < ability.kinds["mathematics"].mean


def test_unverified_scores_have_a_wider_spread() -> None:
    assert (
        look_up_known_ability("command-r-plus").spread
        > look_up_known_ability("llama3.1:70b").spread
    )
    assert "from memory" in look_up_known_ability("command-r-plus").source
    assert (
        look_up_known_ability("phi4").kinds["code"].spread
        > look_up_known_ability("qwen3:8b").kinds["code"].spread
    )


def test_a_newer_claude_is_rated_above_the_last_measured_one_in_each_kind() -> None:
    measured_ability, newer_ability = (
        look_up_known_ability("claude-3-5-sonnet"),
        look_up_known_ability("claude-haiku-5-5"),
    )
    for kind in ("mathematics", "code", "reasoning"):
        gain = newer_ability.kinds[kind].mean - measured_ability.kinds[kind].mean
        assert gain == pytest.approx(newer_ability.mean - measured_ability.mean)
        assert newer_ability.kinds[kind].mean > look_up_known_ability("qwen3:235b").kinds[kind].mean


@pytest.mark.parametrize("model", ["smollm2:135m", "mixtral:8x7b", "gpt-oss:20b", "studio/tune-7b"])
def test_a_model_without_scores_by_kind_has_one_ability(model: str) -> None:
    assert not look_up_known_ability(model).kinds


def test_coarse_quantisation_costs_each_kind() -> None:
    fine_ability, coarse_ability = (
        look_up_known_ability("qwen3:8b-q4_K_M"),
        look_up_known_ability("qwen3:8b-q2_K"),
    )
    measured_kinds = {"mathematics", "code", "reasoning", "extraction", "summary"}
    assert fine_ability.kinds.keys() == coarse_ability.kinds.keys() == measured_kinds
    assert all(
        coarse_ability.kinds[kind].mean < fine_ability.kinds[kind].mean
        for kind in fine_ability.kinds
    )


def test_scores_of_tasks_with_a_given_text_count_half() -> None:
    ability = look_up_known_ability("qwen3:8b")
    for kind, score in (("extraction", "RULER 96.3 %"), ("summary", "Vectara 95.1 %")):
        assert ability.mean < ability.kinds[kind].mean < ability.kinds["mathematics"].mean
        assert ability.kinds[kind].spread == ability.spread
        assert score in ability.kinds[kind].source
        assert ability.kinds[kind].source.startswith("half-way between")


def test_texts_that_were_not_summarised_count_against_a_model() -> None:
    # Of Gemma 3 4B's summaries 93.6 % were faithful, but of a third of the texts it made none.
    gemma_ability = look_up_known_ability("gemma3:4b").kinds["summary"]
    assert "Vectara 63.0 %" in gemma_ability.source
    assert gemma_ability.mean < look_up_known_ability("ministral:3b").kinds["summary"].mean


def test_a_newer_claude_is_rated_above_the_measured_one_in_summaries() -> None:
    measured_ability, newer_ability = (
        look_up_known_ability("claude-haiku-4-5"),
        look_up_known_ability("claude-haiku-5-5"),
    )
    gain = newer_ability.kinds["summary"].mean - measured_ability.kinds["summary"].mean
    assert gain == pytest.approx(newer_ability.mean - measured_ability.mean)
    assert "claude-haiku-4-5" in newer_ability.kinds["summary"].source
    assert (
        newer_ability.kinds["summary"].mean
        > look_up_known_ability("qwen3:235b").kinds["summary"].mean
    )
    assert "extraction" not in newer_ability.kinds
