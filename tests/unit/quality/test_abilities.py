import pytest

from moyin.quality.abilities import ability_from, ability_of, plain_name


@pytest.mark.parametrize(
    ("model", "plain"),
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
def test_packaging_is_taken_off_a_name(model: str, plain: str) -> None:
    assert plain_name(model) == plain


def test_names_of_one_model_have_one_ability() -> None:
    names = ("llama3.1", "llama3.1:8b", "meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b")
    assert len({ability_of(name) for name in names}) == 1


def test_abilities_rise_with_size_and_line() -> None:
    line = (
        "smollm2-135m",
        "llama3.2:1b",
        "llama3.1:8b",
        "qwen3:32b",
        "claude-haiku-5-5",
        "claude-sonnet-5-5",
        "claude-opus-5-5",
        "claude-fable-5-1",
    )
    known = [ability_of(name) for name in line]
    means = [ability.mean for ability in known if ability is not None]
    assert len(means) == len(line)
    assert means == sorted(means)


def test_coarse_quantisation_costs_ability() -> None:
    fine, coarse = (
        ability_of("qwen2.5:14b-instruct-q4_K_M"),
        ability_of("qwen2.5:14b-instruct-q2_K"),
    )
    assert fine and coarse
    assert coarse.mean < fine.mean


def test_unlisted_model_is_judged_by_its_size_with_a_wider_spread() -> None:
    sized, listed = ability_of("studio/our-tune-7b"), ability_of("mistral:7b")
    assert sized and listed
    assert sized.spread > listed.spread
    assert "7 billion" in sized.source


def test_size_of_another_model_of_the_family_is_not_taken() -> None:
    small, large = ability_of("llama-3.1-nemotron-4b"), ability_of("llama-3.1-nemotron-70b")
    assert small and large
    assert small.mean < large.mean


@pytest.mark.parametrize("model", ["bar", "", "::", "our-secret-model"])
def test_name_without_family_and_size_says_nothing(model: str) -> None:
    assert ability_of(model) is None


def test_tiers_rise_and_have_bounds() -> None:
    means = [ability_from(tier).mean for tier in range(5)]
    assert means == sorted(set(means))
    assert ability_from(99) == ability_from(99)
    assert ability_from(-3).mean == means[0]
    assert ability_from(1).basis == "configuration"
