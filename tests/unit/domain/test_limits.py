"""Tests limits on pools and nodes, and their conversion to and from bodies."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from moyin.access.protocol.request_to_domain import parse_limit
from moyin.access.protocol.response import build_limit
from moyin.access.protocol.wire import LimitBody
from moyin.domain.limits import Limit, PoolRules, filter_permitted_pools


def test_pool_must_be_permitted_by_every_limit() -> None:
    key_limit, owner_limit = (
        Limit(subject="key:k", pools=("b", "c")),
        Limit(subject="owner:o", pools=("a", "b")),
    )
    assert filter_permitted_pools((), ["a", "b", "c"]) == ["a", "b", "c"]
    assert filter_permitted_pools((key_limit, Limit(subject="user:u")), ["a", "b", "c"]) == [
        "b",
        "c",
    ]
    assert filter_permitted_pools((key_limit, owner_limit), ["a", "b", "c"]) == ["b"]


def test_denied_nodes_win_over_allowed_nodes() -> None:
    limit = Limit(subject="owner:o", allowed_nodes=("Save*",), denied_nodes=("SaveLoRA",))
    permitted_nodes = [
        n for n in ("SaveImage", "SaveLoRA", "saveimage", "Load") if limit.permits_node(n)
    ]
    assert permitted_nodes == ["SaveImage"]
    assert Limit(subject="owner:o").permits_node("Any")
    rules = PoolRules(allow=("Save*",), deny=("SaveLoRA",), unchecked=("My*.path",))
    assert [n for n in ("SaveImage", "SaveLoRA", "Load") if rules.permits_node(n)] == ["SaveImage"]
    assert not rules.checks_input("MyLoader", "path") and rules.checks_input("Loader", "path")


def test_limit_body_round_trips() -> None:
    body = LimitBody.model_validate({"pools": ["a"], "allowed_nodes": [], "denied_nodes": ["X*"]})
    limit = parse_limit("owner:o", body)
    assert limit == Limit(subject="owner:o", pools=("a",), allowed_nodes=(), denied_nodes=("X*",))
    assert build_limit(limit).model_dump(exclude_none=True) == {
        "subject": "owner:o", "pools": ("a",), "allowed_nodes": (), "denied_nodes": ("X*",),
    }  # fmt: skip


@pytest.mark.parametrize("pools", ["a", [""], ["\0"], ["a" * 129], ["a"] * 257])
def test_invalid_pool_list_is_refused(pools: object) -> None:
    with pytest.raises(ValidationError):
        LimitBody.model_validate({"pools": pools})
