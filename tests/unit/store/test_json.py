from __future__ import annotations

import json
import math
from typing import Any

import pytest

from moyin.store.json import json_text


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"kind": "code", "difficulty": -0.2412, "list": [1, 2.5, True, None, "ü", "違", "\u0000"]},
        {1: "a number becomes a text"},
        10**30,
        "half of a pair: \ud800",
        -math.inf,
    ],
)
def test_the_text_is_equivalent_to_that_of_json_dumps(value: Any) -> None:
    assert json.loads(json_text(value)) == json.loads(json.dumps(value))


def test_values_that_are_not_json_are_refused() -> None:
    with pytest.raises(TypeError):
        json_text(object())
