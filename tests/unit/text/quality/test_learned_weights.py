import math
import random

import pytest

from moyin.text.quality.learned_weights import WORD_TRUST, LearnedWeights, WeightReader
from moyin.text.quality.question import FIRST_WORD_FEATURE, SHAPE_FEATURES
from tests.unit.text.quality.questions import ask

SHAPE = ask("Which of these is right?").features[:SHAPE_FEATURES]
NEVER = (-math.inf, math.inf)


def features(*words: int) -> tuple[int, ...]:
    """Return the features of a question with these words."""
    return (*SHAPE, *(FIRST_WORD_FEATURE + word for word in words))


def learn_from(memory: LearnedWeights, good: float, *words: int) -> None:
    """Learn from one signal about a question with these words, as the estimator does.

    Args:
        good: the signal, from 0 (bad answer) to 1 (good answer).
    """
    expected = 1.0 / (1.0 + math.exp(-WeightReader(features(*words)).compute_residual(memory.mean)))
    memory.learn(features(*words), good - expected, 0.2, 1.0, (-0.5, 0.5))


def read(memory: LearnedWeights, *words: int) -> float:
    return WeightReader(features(*words)).compute_residual(memory.mean)


def learn_topics(tell: bool) -> LearnedWeights:
    """Learn from 200 questions, and return the weights.

    Args:
        tell: True if the words of a question determine its rating; False for random ratings.
    """
    chance, memory = random.Random(7), LearnedWeights()
    for number in range(200):
        topic = number % 4
        good = topic < 2 if tell else chance.random() < 0.5
        learn_from(memory, float(good), *(10 * topic + chance.randrange(10) for _ in range(6)))
    return memory


def test_trust_grows_with_informative_words_and_shrinks_otherwise() -> None:
    assert learn_topics(tell=True).mean[WORD_TRUST] > 0.1
    assert learn_topics(tell=False).mean[WORD_TRUST] < 0.0


def test_trust_scales_only_the_words() -> None:
    memory = learn_topics(tell=True)
    words, shape = read(memory, 1, 2, 3), sum(memory.mean[number] for number in SHAPE)
    memory.mean[WORD_TRUST] = 0.0
    once = read(memory, 1, 2, 3)
    memory.mean[WORD_TRUST] = 1.0
    assert read(memory, 1, 2, 3) - shape == pytest.approx(2 * (once - shape))
    assert words != pytest.approx(once)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_an_estimate_moves_no_further_where_the_trust_grows_too(side: float) -> None:
    memory = LearnedWeights()
    for word in range(12):
        memory.mean[FIRST_WORD_FEATURE + word] = side
    before = read(memory, *range(12))
    moved = memory.learn(features(*range(12)), side * 30.0, 0.0, 1.0, (-0.5, 0.5))
    assert abs(moved) == pytest.approx(0.5)
    assert 0.45 < (read(memory, *range(12)) - before) * side <= 0.5


def test_trust_is_bounded_also_after_merging() -> None:
    memories = [LearnedWeights(), LearnedWeights()]
    for memory in memories:
        for _ in range(400):
            for word in range(12):
                memory.mean[FIRST_WORD_FEATURE + word] = 3.0
            memory.learn(features(*range(12)), 9.0, 0.0, 1.0, NEVER)
        assert memory.mean[WORD_TRUST] == 2.0
    one, two = memories
    assert one.merge_with(two).mean[WORD_TRUST] == two.merge_with(one).mean[WORD_TRUST] == 2.0


def test_trust_is_stored_merged_and_forgotten_like_any_weight() -> None:
    memory = learn_topics(tell=True)
    assert memory.merge_with(LearnedWeights()).mean[WORD_TRUST] == pytest.approx(
        memory.mean[WORD_TRUST]
    )
    stored = LearnedWeights.from_json(memory.to_json())
    assert stored.mean[WORD_TRUST] == pytest.approx(memory.mean[WORD_TRUST])
    stored.fade(365 * 86_400.0)
    assert stored.mean[WORD_TRUST] == pytest.approx(0.0, abs=0.001)


def test_weights_stored_without_trust_read_as_before() -> None:
    learned = learn_topics(tell=True).mean
    known = {0: 3.0, FIRST_WORD_FEATURE + 1: 2.0, FIRST_WORD_FEATURE + 2: 2.0}
    stored = LearnedWeights.from_json(LearnedWeights(mean=learned, information=known).to_json())
    words = (learned[FIRST_WORD_FEATURE + 1] + learned[FIRST_WORD_FEATURE + 2]) / math.sqrt(2)
    assert read(stored, 1, 2) == pytest.approx(learned[0] + words, abs=1e-6)
