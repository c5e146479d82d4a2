import pytest

from moyin.text.quality.wording import format_probability


@pytest.mark.parametrize(
    ("p", "formatted_p"),
    [
        (0.5, "0.50"),
        (0.994, "0.99"),
        (0.9951, ">0.99"),
        (1.0, ">0.99"),
        (0.004, "<0.01"),
        (0.006, "0.01"),
    ],
)
def test_no_probability_is_shown_as_certain(p: float, formatted_p: str) -> None:
    assert format_probability(p) == formatted_p
