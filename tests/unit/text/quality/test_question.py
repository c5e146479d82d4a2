import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.text.quality.question import (
    _WORD_PATTERN,
    FEATURE_COUNT,
    FIRST_WORD_FEATURE,
    FORMULA_FEATURE,
    KINDS,
    LANGUAGES,
    SHAPE_FEATURES,
    _split_words,
    _StemFeatureCache,
    build_question,
)
from tests.unit.text.quality.questions import make_question


@pytest.mark.parametrize(
    ("text", "kind", "language"),
    [
        ("Say hello", "greeting", "en"),
        ("Thanks, that's great", "greeting", "en"),
        ("Write merge sort in Go", "code", "en"),
        ("merge k sorted lists in Go", "code", "en"),
        ("Fix this: def f(x): return x+1", "code", "en"),
        ("Write a stack in Go", "code", "en"),
        ("Write a poem about the game of Go, and go on in prose", "writing", "en"),
        ("クイックソートをPythonで書いてください", "code", "ja"),
        ("Wie gefährlich ist ein Knoten in der Brust?", "knowledge", "de"),
        ("Guten Morgen!", "greeting", "de"),
        ("Beweise, dass 2 die einzige gerade Primzahl ist", "mathematics", "de"),
        ("I have a fever and a sore throat, what should I do?", "medicine", "en"),
        ("What is 17 * 23?", "mathematics", "en"),
        ("Prove that sqrt(2) is irrational.", "mathematics", "en"),
        ("Ist diese Klausel nach § 307 BGB wirksam?", "law", "de"),
        ("Summarize this contract in three bullet points.", "summary", "en"),
        ("Extract the name and the date: INV-123, 3 May", "extraction", "en"),
        ("Translate to German: The weather is nice today.", "translation", "en"),
        (
            "A man takes a wolf, a goat and a cabbage over a river. How does he do it?",
            "reasoning",
            "en",
        ),
        (
            "Ein Bauer hat 17 Schafe, alle bis auf 9 sterben. Wie viele leben noch?",
            "reasoning",
            "de",
        ),
        ("What is the capital of France?", "knowledge", "en"),
        ("この文章を英語に翻訳してください。", "translation", "ja"),
        ("请写一个故事", "writing", "zh"),
        ("Привет, как дела?", "greeting", "ru"),
        ("어떻게 지내세요?", "chat", "ko"),
        ("Quelle est la différence entre le pain et les pâtes?", "chat", "fr"),
    ],
)
def test_kind_and_language_show_in_words_and_script(text: str, kind: str, language: str) -> None:
    question = make_question(text)
    assert (question.kind, question.language) == (kind, language)


def test_greeting_is_far_easier_than_other_questions() -> None:
    other_texts = (
        "Tell me a joke",
        "What is the capital of France?",
        "Tag this: red, blue",
        "Write a haiku",
    )
    assert all(
        make_question("Say hello").difficulty < make_question(text).difficulty - 3
        for text in other_texts
    )


def test_greeting_before_a_request_does_not_change_its_kind() -> None:
    assert make_question("Hi, can you fix the bug in my python function?").kind == "code"


def test_greeting_in_another_language_keeps_the_difficulty_of_the_language() -> None:
    assert make_question("こんにちは").difficulty >= 0.0


@pytest.mark.parametrize("trait", ["tools", "schema", "pictures", "thinking"])
def test_each_demand_adds_difficulty(trait: str) -> None:
    text = "List three rivers of France"
    demand: dict[str, Any] = {trait: True}
    assert make_question(text, **demand).difficulty > make_question(text).difficulty


def test_long_prompts_proofs_and_later_turns_are_harder() -> None:
    text = "Is the number 17 prime?"
    assert (
        make_question(text, prompt_tokens=20_000).difficulty
        > make_question(text, prompt_tokens=400).difficulty
    )
    assert (
        make_question("Prove that 17 is prime").difficulty
        > make_question("Is 17 a prime integer").difficulty
    )
    assert (
        make_question("Write a long story about rain", text * 3).difficulty
        > make_question(text * 3).difficulty
    )


# Has cues of every kind, and is longer than the part that is read.
MINUTES = "\n".join(
    f"Speaker {number}: the court, the tax on our code, the design and why we prove it, did we not?"
    for number in range(60)
)


@pytest.mark.parametrize(
    ("request_text", "kind"),
    [
        ("Summarize the whole meeting.", "summary"),
        ("What did the group decide about the functions of the remote control?", "summary"),
        ("Why was the tax on interest put off?", "summary"),
        ("Explain what the report says about money.", "summary"),
        ("Who was against the new contract?", "extraction"),
        ("How many had read the statute?", "extraction"),
        ("When does the trial begin?", "extraction"),
        ("Is clause 4 valid?", "law"),
        ("Translate this to French.", "translation"),
        ("Write a python function that counts the speakers.", "code"),
    ],
)
def test_topic_of_a_long_text_is_not_the_kind_of_the_request(request_text: str, kind: str) -> None:
    assert make_question(f"{MINUTES}\n\n{request_text}").kind == kind
    assert make_question(f"{request_text}\n\n{MINUTES}").kind == kind


@pytest.mark.parametrize("request_text", ["Is that right?", "What should we do now?", ""])
def test_words_of_a_long_text_count_without_a_request(request_text: str) -> None:
    assert make_question(f"{MINUTES}\n\n{request_text}").kind == make_question(MINUTES).kind


def test_request_about_long_code_is_code() -> None:
    code = "def add(left, right):\n    return left + right\n\n" * 60
    assert make_question(f"{code}\n\nWhat did I do wrong?").kind == "code"


def test_exam_question_about_a_long_text_has_the_kind_of_the_text() -> None:
    exam_question = "Which of these was said?\nA. Nothing\nB. All of it\nAnswer:"
    assert make_question(f"{MINUTES}\n\n{exam_question}").kind == make_question(MINUTES).kind


def test_words_of_a_long_text_do_not_change_the_difficulty() -> None:
    request_text = "Summarize the whole meeting."
    plain_minutes = "\n".join(
        f"Speaker {number}: good morning, dear friends of ours" for number in range(90)
    )
    texts = [f"{text[:3_000]}\n\n{request_text}" for text in (MINUTES, plain_minutes)]
    assert make_question(texts[0]).difficulty == make_question(texts[1]).difficulty


def test_short_follow_up_has_the_kind_of_the_previous_message() -> None:
    assert make_question("Write merge sort in Python", "And in Rust?").kind == "code"


def test_system_and_assistant_messages_are_ignored() -> None:
    texts = [("system", "You write Python code."), ("user", "Say hello"), ("assistant", "def f():")]
    question = build_question(
        texts, tools=False, schema=False, pictures=False, thinking=False, prompt_tokens=9
    )
    assert question.kind == "greeting"


def test_empty_request_gives_a_question() -> None:
    for texts in ([], [("user", "")], [("system", "x")]):
        question = build_question(
            texts, tools=False, schema=False, pictures=False, thinking=False, prompt_tokens=0
        )
        assert question.kind in KINDS


@given(st.lists(st.text(max_size=3_000), max_size=3), st.integers(0, 10**7))
def test_any_text_gives_a_bounded_question(texts: list[str], prompt_tokens: int) -> None:
    question = make_question(*texts, prompt_tokens=prompt_tokens)
    assert question.kind in KINDS
    assert question.language in LANGUAGES
    assert -12 < question.difficulty < 15
    assert SHAPE_FEATURES <= len(question.features) <= 128
    assert all(0 <= feature < FEATURE_COUNT for feature in question.features)


def test_long_text_costs_no_more_features_than_a_page() -> None:
    words = " ".join(f"word{number}" for number in range(200_000))
    assert len(make_question(words).features) <= 128


def test_questions_are_the_same_in_every_process() -> None:
    texts = [
        "Zwei Züge treffen sich",
        "tax law code patient essay riddle",  # one vote for each of several kinds
        "Calculate the tax in Python for the patient's contract",
        "und les para gli",  # one function word of each of several languages
    ]
    script = f"from tests.unit.text.quality.questions import make_question\nfor text in {texts!r}: print(make_question(text))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            capture_output=True,
            env={"PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in range(4)
    }
    assert len(outputs) == 1


@given(st.text(alphabet=st.characters(max_codepoint=0x17F), max_size=200))
def test_words_are_the_same_with_and_without_the_ascii_table(text: str) -> None:
    lowered_text = text.lower()
    assert _split_words(text, lowered_text) == _WORD_PATTERN.findall(lowered_text)


def test_cache_of_word_features_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moyin.text.quality.question._MAX_CACHED_WORDS", 10)
    cache = _StemFeatureCache(6)
    for number in range(100):
        assert cache[f"word{number}"] == cache["word" + str(number)[:2]]
        assert len(cache) <= 11
    assert cache["contracts" * 10] == cache["contractual"]
    assert "contracts" * 10 not in cache


@pytest.mark.parametrize("text", ["Solve x^2 = 4", r"What is \frac{1}{2} of it?", "Let a = 3"])
def test_formulae_are_a_feature_of_the_shape(text: str) -> None:
    assert FORMULA_FEATURE + 1 in make_question(text).features[:SHAPE_FEATURES]
    assert FORMULA_FEATURE in make_question("What is half of it?").features[:SHAPE_FEATURES]


def test_words_of_one_stem_share_a_feature() -> None:
    def find_word_features(word: str) -> set[int]:
        return set(make_question(f"which is the {word} that we all want").features[SHAPE_FEATURES:])

    assert find_word_features("contract") == find_word_features("contractual")
    assert len(find_word_features("contract") - find_word_features("calls")) == 1
    assert min(find_word_features("contract")) >= FIRST_WORD_FEATURE


def test_features_of_a_text_with_many_words_are_within_the_bound() -> None:
    text = " ".join(f"{chr(97 + n // 26)}{chr(97 + n % 26)}{n}xyz" for n in range(600))
    assert 90 < len(make_question(text).features) <= 128
