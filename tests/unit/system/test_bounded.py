from __future__ import annotations

from moyin.system.bounded import BoundedDict


def test_bounded_dict_drops_the_entry_that_was_set_longest_ago() -> None:
    mapping: BoundedDict[str, int] = BoundedDict(2)
    mapping["a"], mapping["b"] = 1, 2
    mapping["a"] = 3
    mapping["c"] = 4
    assert dict(mapping) == {"a": 3, "c": 4}
    assert "b" not in mapping
