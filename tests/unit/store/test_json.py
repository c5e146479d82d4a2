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
def test_it_is_read_as_what_json_would_have_written(value: Any) -> None:
    assert json.loads(json_text(value)) == json.loads(json.dumps(value))


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        json_text(object())
