from __future__ import annotations

from typing import Any

import pytest

from moyin.comfy_api.protocol.offers import has_all, offer_of

NODES: dict[str, Any] = {
    "Load": {
        "input": {
            "required": {"ckpt": [["a", "b"], {}], "image": [["mine"], {"image_upload": True}]},
            "optional": {"mode": ["COMBO", {"options": ["fast", 3]}], "n": ["INT", {}]},
        }
    },
    "Bare": {},
}


@pytest.mark.parametrize(
    ("inputs", "right"),
    [
        ({"ckpt": "a", "mode": "fast", "n": 1}, True),
        ({"ckpt": ["2", 0], "n": "text"}, True),
        ({"ckpt": "a", "image": "anybody's"}, True),
        ({"ckpt": "a", "mode": 4}, True),
        ({"ckpt": "c"}, False),
        ({"mode": "slow"}, False),
    ],
)
def test_a_pool_has_what_its_nodes_let_one_choose(inputs: dict[str, Any], right: bool) -> None:
    offer = offer_of(NODES)
    assert has_all(offer, {"1": {"class_type": "Load", "inputs": inputs}}) is right


def test_a_pool_has_no_nodes_but_its_own() -> None:
    offer = offer_of(NODES)
    assert has_all(offer, {"1": {"class_type": "Bare"}})
    assert not has_all(offer, {"1": {"class_type": "Bare"}, "2": {"class_type": "Other"}})
    assert not has_all(offer, {"1": {}})
